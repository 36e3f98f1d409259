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

# Time for the cancel request to arrive; the statement has ended when the margin begins.
CANCEL_EARLY_SECONDS = 0.02
# A statement that began just after our look is found by the next one. No new ones begin once the margin has.
LOOK_AGAIN_SECONDS = 0.01
LONGEST_LOOKING_SECONDS = 1.0


# When to cancel, how, and until when to look again (None before the first look, which may come late itself). A tuple:
# each invocation makes one.
_Order = tuple[float, Callable[[], object], float | None]


class Watchdog:
    """One thread for all invocations of a process; arming it costs no system call while it sleeps short enough."""

    def __init__(self) -> None:
        self._armed: _Order | None = None
        self._sleeps_until = math.inf
        self._has_thread = False
        self._make_locks()
        os.register_at_fork(after_in_child=self._forget_thread)

    def arm(self, at: float, cancel: Callable[[], object]) -> None:
        """Call `cancel` at `at` (seconds of the wall clock) and again and again until disarmed."""
        # The order matters: the thread notes how long it sleeps before it looks, so one of us sees the other.
        cancel_at = at - CANCEL_EARLY_SECONDS
        self._armed = (cancel_at, cancel, None)
        if not self._has_thread:
            threading.Thread(target=self._run, name="emberpool-watchdog", daemon=True).start()
            self._has_thread = True
        elif self._sleeps_until > cancel_at:
            with self._changed:
                self._changed.notify()

    def disarm(self) -> None:
        """Forget the invocation; waits for a cancel request that is under way."""
        with self._firing:  # without it, one that fires now would arm itself again after this
            self._armed = None

    def _make_locks(self) -> None:
        # Held while a cancel request is under way, so that it can never reach the next invocation's statement.
        self._firing = threading.Lock()
        self._changed = threading.Condition()

    def _forget_thread(self) -> None:
        # A forked child has no thread, and a lock may have been held at the fork.
        self._has_thread, self._armed = False, None
        self._make_locks()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sleeps_until = math.inf
                armed = self._armed
                if armed is None:
                    self._changed.wait()
                    continue
                left_seconds = armed[0] - time.time()
                if left_seconds > 0:
                    self._sleeps_until = armed[0]
                    self._changed.wait(left_seconds)
                    continue
            self._fire(armed)

    def _fire(self, armed: _Order) -> None:
        with self._firing:
            if self._armed is not armed:
                return
            _, cancel, until = armed
            cancel()
            again_at = time.time() + LOOK_AGAIN_SECONDS
            if until is None:
                until = again_at + LONGEST_LOOKING_SECONDS
            self._armed = None if again_at > until else (again_at, cancel, until)
