"""Virtual time: a heap of events, and processes that are generators of delays. No thread sleeps, no clock is read."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

Delays = Generator[float, None, None]
Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]


@dataclass
class Clock:
    """The one time of a world. Events of the same moment run in the order in which they were asked for."""

    now: float = 0.0
    events: int = 0
    _heap: list[Event] = field(default_factory=list)
    _asked: int = 0

    def after(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Run the callback `delay` seconds from now."""
        self._asked += 1
        heappush(self._heap, (self.now + delay, self._asked, callback, arguments))

    def run(self, until: float) -> None:
        """Run all events up to that moment."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, callback, arguments = heappop(heap)
            self.events += 1
            callback(*arguments)
        self.now = until


class Process:
    """A generator of delays, resumed by the clock: what it does between two delays happens in one moment."""

    def __init__(self, clock: Clock, delays: Delays) -> None:
        self._clock = clock
        self._delays = delays
        self._turn = 0
        self.is_over = False
        clock.after(0.0, self._resume, 0)

    def end(self) -> None:
        """Never resume it again, as SIGKILL does: what it had asked of others still happens."""
        self.is_over = True

    def wake(self) -> None:
        """Resume it now instead of when its delay is over. Only for a process that says it can be woken."""
        self._turn += 1
        self._clock.after(0.0, self._resume, self._turn)

    def _resume(self, turn: int) -> None:
        if self.is_over or turn != self._turn:
            return
        self._turn += 1
        delay = next(self._delays, None)
        if delay is None:
            self.is_over = True
        else:
            self._clock.after(delay, self._resume, self._turn)
