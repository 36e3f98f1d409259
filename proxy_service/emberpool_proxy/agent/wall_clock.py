"""Notices a clock on the wall that goes back, and what makes PgBouncer forget what it dated with the one before.

PgBouncer measures all its limits by that clock. Most of them are over at once when it jumps, and begin anew; but what
it has resolved is good until a moment that is far away now, so it would not follow a failover for as long as the clock
went back. It has no command that empties its cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from emberpool_proxy.log import logger

WENT_BACK_SECONDS = 3.0  # less makes a name live for so much longer than dns_max_ttl


class WallClock:
    """Compares the clock on the wall with the one that never goes back."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def went_back(self) -> float:
        """Return by how many seconds it went back since the last call, 0 when it did not."""
        before, self._ahead = self._ahead, self._wall() - self._monotonic()
        return max(before - self._ahead, 0.0)


async def watch_wall_clock(look_seconds: float, on_back: Callable[[], Awaitable[object]]) -> None:
    """Await `on_back` each time that the clock has gone back by WENT_BACK_SECONDS or more, until cancelled."""
    clock = WallClock()
    while True:
        await asyncio.sleep(look_seconds)
        if (seconds := clock.went_back()) >= WENT_BACK_SECONDS:
            logger.warning("the clock went back by %.1f s: the database's name is resolved anew", seconds)
            await on_back()


def respelled(name: str) -> str:
    """Return the name with other letters in upper case: the next one of as many spellings as there can be."""
    letters = [place for place, letter in enumerate(name) if letter.isalpha()]
    number = sum(1 << bit for bit, place in enumerate(letters) if name[place].isupper()) + 1
    upper = {place for bit, place in enumerate(letters) if number >> bit & 1}
    return "".join(letter.upper() if place in upper else letter.lower() for place, letter in enumerate(name))
