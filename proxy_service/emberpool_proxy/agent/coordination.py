"""Speaks with the database for the budget, beside its loop: a slow database must not keep the loop from its pools.

What one step decided is done in the order give, take, publish, view; until that is over later steps ask for nothing.
The control connection is opened when it is wanted, and its socket is given to the supervisor, too: should the agent
die, its locks live as long as the PgBouncers that rely on them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

import psycopg

from emberpool_proxy.agent.budget_reading import FleetView
from emberpool_proxy.agent.decide import Decision
from emberpool_proxy.agent.slots import Slots
from emberpool_proxy.errors import BudgetUnusable, words_of
from emberpool_proxy.log import logger

OPEN_SECONDS = 3.0  # as long as PgBouncer gives a login
FIRST_PAUSE_SECONDS = 0.1  # a database that fails over is back within seconds: the first tries are soon
LONGEST_PAUSE_SECONDS = 2.0
# What only people can mend is said once, and tried again at a pace that nobody notices.
UNUSABLE_PAUSE_SECONDS = 30.0
JITTER = (0.5, 1.5)
LOST = (psycopg.Error, TimeoutError, OSError)


class Keeper(Protocol):
    """Keeps what must survive this agent."""

    def hold(self, descriptor: int | None) -> None:
        """Have the supervisor keep a duplicate of the control connection's socket, or drop it."""

    def keep_session(self, process_id: int) -> None:
        """Write down which backend holds this task's locks."""


class Coordination:
    """The control connection and what is done over it. `session` is the backend of an agent before this one, or 0.

    `login_turn` is shared with whoever else logs in for the agent: the budget counts two connections of its own.
    """

    def __init__(
        self, slots: Slots, keeper: Keeper, session: int, wake: Callable[[], None], login_turn: asyncio.Lock
    ) -> None:
        self._slots = slots
        self._keeper = keeper
        self._session = session
        self._wake = wake
        self._login_turn = login_turn
        self._work: asyncio.Task[None] | None = None
        self._giving: frozenset[int] = frozenset()
        self._is_kept = False  # the supervisor has a duplicate of our connection's socket
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._last_words = ""
        self.fleet: FleetView | None = None
        self._taken: int | None = None
        self._is_anybody_hungry: bool | None = None
        self.slots_taken = 0
        self.slots_given = 0
        self.times_lost = 0

    @property
    def held(self) -> frozenset[int]:
        """The slots that this task may rely on; what is being given back is gone."""
        return self._slots.held - self._giving

    @property
    def has_predecessor(self) -> bool:
        """Whether locks of an agent before this one may still be held, by a socket that the supervisor keeps."""
        return bool(self._session) and not self.is_connected

    @property
    def is_connected(self) -> bool:
        """Whether there is a control connection."""
        return self._slots.is_open

    def last_taken(self) -> int | None:
        """Return how many slots were got since the last call; None when none were asked for."""
        taken, self._taken = self._taken, None
        return taken

    def last_hunger(self) -> bool | None:
        """Return whether anybody was hungry when it was last asked; None when it was not since the last call."""
        answer, self._is_anybody_hungry = self._is_anybody_hungry, None
        return answer

    def lost(self) -> None:
        """Take note that the control connection is gone, and all locks with it."""
        self.fleet = None
        self.times_lost += 1
        if self._is_kept:  # else it is the one before that is, which its slots still rely on
            self._keeper.hold(None)
            self._is_kept = False

    def begin(self, decision: Decision) -> None:
        """Do what `decision` wants of the database, unless something is still being done."""
        if self._work and not self._work.done():
            return
        if not self._is_work(decision):
            return
        self._giving = decision.give & self._slots.held
        self._work = asyncio.create_task(self._do(decision))

    async def open(self) -> FleetView:
        """Open the control connection now. Raises BudgetUnusable, or what a database that is away raises."""
        async with self._login_turn:
            async with asyncio.timeout(OPEN_SECONDS):
                session = await self._slots.open()
            if self._session and self._session != session:
                await self._slots.inherit(self._session)
        self._session = session
        self._keeper.keep_session(session)
        self._keeper.hold(self._slots.descriptor())
        self._is_kept = True
        self.fleet = await self._slots.view()
        return self.fleet

    async def close(self) -> None:
        """End the work and the control connection. Only when PgBouncer has ended, or nothing is held."""
        if self._work:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self._close()

    def _is_work(self, decision: Decision) -> bool:
        if not self.is_connected:
            return decision.wants_connection and time.monotonic() >= self._not_before
        return decision.is_work(self._slots.missing)

    async def _do(self, decision: Decision) -> None:
        try:
            if not self.is_connected:
                await self.open()
                self._pause_seconds, self._last_words = FIRST_PAUSE_SECONDS, ""
                logger.info("the control connection is open", extra={"fields": {"slots": len(self.held)}})
            elif not decision.wants_connection and not self._slots.held:
                await self._close()
            else:
                await self._exchange(decision)
        except BudgetUnusable as error:
            self._put_off(str(error), UNUSABLE_PAUSE_SECONDS, logger.error)
        except LOST as error:
            self._put_off(words_of(error), self._pause_seconds, logger.warning)
            self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        finally:
            self._giving = frozenset()
            self._wake()

    async def _exchange(self, decision: Decision) -> None:
        if self._giving:
            await self._slots.give(self._giving)
            self.slots_given += len(self._giving)
        if decision.take_count:
            taken = await self._slots.take(decision.take, decision.take_count)
            self._taken = len(taken)
            self.slots_taken += len(taken)
        await self._slots.publish_missing(decision.missing)
        if decision.wants_fleet or self._taken:
            self.fleet = await self._slots.view()
        elif decision.wants_hunger:
            self._is_anybody_hungry = await self._slots.is_anybody_hungry()

    async def _close(self) -> None:
        await self._slots.close()
        self.fleet = None
        self._session = 0
        self._is_kept = False
        self._keeper.hold(None)
        self._keeper.keep_session(0)

    def _put_off(self, words: str, seconds: float, log: Callable[..., None]) -> None:
        self._not_before = time.monotonic() + seconds * random.uniform(*JITTER)  # noqa: S311 (jitter)
        if words != self._last_words:
            log("the budget cannot be coordinated: %s; this task serves with its floor", words)
        self._last_words = words
