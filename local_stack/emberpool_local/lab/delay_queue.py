"""Things that are due later, with a timer that is a file: epoll's own timeout counts in whole milliseconds."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

CLOCK_MONOTONIC = 1  # what time.monotonic() reads
TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
SHORTEST_NANOSECONDS = 1  # a moment of zero would switch the timer off

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class DelayQueue(Generic[ItemT]):
    """Items in the order of their moments; `file` (Linux's timerfd) becomes readable when the first one is due."""

    def __init__(self) -> None:
        self.file: int = _LIBC.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.file < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._setting = _Setting()
        self._numbers = count()  # items of one moment keep their order
        self._heap: list[tuple[float, int, ItemT]] = []

    def add(self, moment: float, item: ItemT) -> None:
        """Keep an item until this moment of time.monotonic()."""
        entry = (moment, next(self._numbers), item)
        heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set(moment)

    def due(self) -> Iterator[ItemT]:
        """Give out the items that are due, once the file is readable."""
        with suppress(BlockingIOError):  # the timer was set again meanwhile
            os.read(self.file, 8)
        while self._heap and self._heap[0][0] <= monotonic():
            yield heappop(self._heap)[2]
        if self._heap:
            self._set(self._heap[0][0])

    def forget(self, is_meant: Callable[[ItemT], bool]) -> None:
        """Throw items away."""
        self._heap = [entry for entry in self._heap if not is_meant(entry[2])]
        heapify(self._heap)

    def _set(self, moment: float) -> None:
        seconds = int(moment)
        self._setting.seconds = seconds
        self._setting.nanoseconds = max(int((moment - seconds) * 1e9), SHORTEST_NANOSECONDS)
        _LIBC.timerfd_settime(self.file, TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None)
