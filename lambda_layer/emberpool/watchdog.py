"""Cancels what still runs in the database when an invocation's time is nearly over.

`statement_timeout` covers a statement that starts a transaction's life; a statement that comes late in one, or runs
outside of transactions, would outlive its invocation without this.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

# Time for the cancel request to arrive; the statement has ended when the margin begins.
CANCEL_EARLY_SECONDS = 0.02
# A statement that began just after our look is found by the next one. No new ones begin once the margin has.
LOOK_AGAIN_SECONDS = 0.01
LONGEST_LOOKING_SECONDS = 1.0


@dataclass(frozen=True)
class _Order:
    at: float
    cancel: Callable[[], object]
    until: float


class Watchdog:
    """One thread for all invocations of a process; arming it costs no system call while it sleeps short enough."""

    def __init__(self) -> None:
        # Held while a cancel request is under way, so that it can never reach the next invocation's statement.
        self._firing = threading.Lock()
        self._changed = threading.Condition()
        self._armed: _Order | None = None
        self._sleeps_until = math.inf
        self._pid = 0

    def arm(self, at: float, cancel: Callable[[], object]) -> None:
        """Call `cancel` at `at` (seconds of the wall clock) and again and again until disarmed."""
        # The order matters: the thread notes how long it sleeps before it looks, so one of us sees the other.
        self._armed = _Order(at - CANCEL_EARLY_SECONDS, cancel, at + LONGEST_LOOKING_SECONDS)
        if self._pid != os.getpid():
            self._start()
        elif self._sleeps_until > at - CANCEL_EARLY_SECONDS:
            with self._changed:
                self._changed.notify()

    def disarm(self) -> None:
        """Forget the invocation; waits for a cancel request that is under way."""
        with self._firing:
            self._armed = None

    def _start(self) -> None:
        # A forked child has no thread, and a lock may have been held at the fork.
        self._firing, self._changed = threading.Lock(), threading.Condition()
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="emberpool-watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sleeps_until = math.inf
                armed = self._armed
                if armed is None:
                    self._changed.wait()
                    continue
                left_seconds = armed.at - time.time()
                if left_seconds > 0:
                    self._sleeps_until = armed.at
                    self._changed.wait(left_seconds)
                    continue
            self._fire(armed)

    def _fire(self, armed: _Order) -> None:
        with self._firing:
            if self._armed is not armed:
                return
            armed.cancel()
            again_at = time.time() + LOOK_AGAIN_SECONDS
            self._armed = None if again_at > armed.until else replace(armed, at=again_at)
