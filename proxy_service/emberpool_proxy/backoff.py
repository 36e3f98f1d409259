"""How soon to start a crashed process again, and when to give up."""

from __future__ import annotations

import time
from collections import deque

CRASHES_BEFORE_GIVING_UP = 5
CRASH_WINDOW_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 2.0


class CrashLog:
    """The crashes of one process: `total` since the start, and those of the last CRASH_WINDOW_SECONDS."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[float] = deque()

    def add(self, now: float | None = None) -> float | None:
        """Count a crash; return the seconds to wait before the next start, or None to give up."""
        now = time.monotonic() if now is None else now
        self.total += 1
        self._recent.append(now)
        while now - self._recent[0] > CRASH_WINDOW_SECONDS:
            self._recent.popleft()
        crashes = len(self._recent)
        if crashes >= CRASHES_BEFORE_GIVING_UP:
            return None
        # The first restart is at once: clients are waiting for it.
        return 0.0 if crashes == 1 else min(0.1 * 2**crashes, LONGEST_PAUSE_SECONDS)

    def __str__(self) -> str:
        return f"{len(self._recent)} times within {CRASH_WINDOW_SECONDS:g} s"
