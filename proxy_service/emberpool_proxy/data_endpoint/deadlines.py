"""One timer for all statements that run: a timer of the event loop for each would cost more than its few bytes here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

TICK_SECONDS = 0.1  # how late a deadline may be noticed

Key = TypeVar("Key")


class Deadlines(Generic[Key]):
    """Calls back, with the key, what has not been cleared in time. The timer runs only while something is due."""

    def __init__(self, tick_seconds: float = TICK_SECONDS) -> None:
        self._tick_seconds = tick_seconds
        self._due: dict[Key, tuple[float, Callable[[Key], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: Key, at: float, call: Callable[[Key], None]) -> None:
        """Call `call(key)` soon after the loop's time `at`, unless it is cleared before."""
        self._due[key] = (at, call)
        if self._timer is None:
            self._start(asyncio.get_running_loop())

    def clear(self, key: Key) -> None:
        """Forget the key, if it is known."""
        self._due.pop(key, None)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._tick_seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for key, (at, call) in list(self._due.items()):
            if at <= now:
                del self._due[key]
                call(key)
        if self._due:
            self._start(loop)
