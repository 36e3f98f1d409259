"""Keeps this task's server connections within the fleet's budget, and moves them to where clients wait.

The loop: look at the pools, let decide.step say what to do, tell PgBouncer, and have coordination speak with the
database. A task that is alone goes the same way, without slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace

import psycopg

from emberpool_proxy.agent.budget_demand import Demand, Peak
from emberpool_proxy.agent.budget_limits import Limits
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse, Reading
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.agent.coordination import LOST, Coordination, Keeper
from emberpool_proxy.agent.decide import Decision, State, Terms, step
from emberpool_proxy.agent.slots import Slots
from emberpool_proxy.errors import BudgetUnusable
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.settings import AGENT_CONNECTIONS, ProxySettings, variable

START_CHECK_SECONDS = 5.0  # a database that is away at the start is checked when it is back
# An agent that started again finds its predecessor's slots still held. It touches no limit before it has taken them
# over, or has tried for so long.
RESUME_SECONDS = 10.0
RESUME_AGAIN_SECONDS = 0.1
QUIET_SECONDS = 0.02  # between two steps, however often something calls for one


class Budget:
    """The budget's part of one task. `slots` is None for a task that is alone."""

    def __init__(
        self,
        settings: ProxySettings,
        limits: Limits,
        slots: Slots | None,
        health: Health,
        keeper: Keeper,
        session: int,
        login_turn: asyncio.Lock,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._health = health
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()  # a process that has just started is not to be raised by two steps at once
        self._coordination = Coordination(slots, keeper, session, self.wake, login_turn) if slots else None
        if slots:
            slots.on_lost(self._lost)
        self._state: State | None = None
        self._is_resumed = not (self._coordination and self._coordination.has_predecessor)

    async def check(self) -> None:
        """Look at the start whether the budget can hold. Raises BudgetUnusable with what people have to mend."""
        if self._coordination is None:
            return
        try:
            async with asyncio.timeout(START_CHECK_SECONDS):
                fleet = await self._coordination.open()
        except LOST as error:
            logger.warning("the budget is checked later: the database does not answer (%s)", type(error).__name__)
            return
        if fleet.least_room_for < 0:
            settings = self._settings
            floors = settings.most_tasks_alive * (settings.floor_connections + AGENT_CONNECTIONS)
            raise BudgetUnusable(
                f"the database's own limit leaves {floors + fleet.least_room_for} connections for the fleet, below its "
                f"floors: {settings.most_tasks_alive} tasks x ({settings.floor_connections} + {AGENT_CONNECTIONS}) = "
                f"{floors}; raise max_connections, or lower {variable('most_tasks_alive')}, "
                f"{variable('floor_connections')} or {variable('reserved_connections')}"
            )

    async def begin(self) -> None:
        """Give a PgBouncer that has just started the limits it is due, before it counts as ready."""
        if not self._is_resumed:
            return
        with contextlib.suppress(psycopg.Error, TimeoutError):
            await self._step()

    async def run(self) -> None:
        """Keep the budget until cancelled."""
        if not self._is_resumed:
            await self._resume()
        while True:
            self._woken.clear()
            wait_seconds = await self._step()
            await asyncio.sleep(QUIET_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait_seconds - QUIET_SECONDS, 0.0)):
                    await self._woken.wait()

    def wake(self) -> None:
        """Have the next step taken now: a client waits, or the database has answered."""
        self._woken.set()

    async def close(self) -> None:
        """Close the control connection and the consoles. PgBouncer has ended by then, or is another agent's."""
        await self._limits.close()
        if self._coordination:
            await self._coordination.close()

    async def _resume(self) -> None:
        coordination = self._coordination
        until = asyncio.get_running_loop().time() + RESUME_SECONDS
        while coordination and not self._is_resumed and asyncio.get_running_loop().time() < until:
            try:
                async with asyncio.timeout_at(until):
                    await coordination.open()
                self._is_resumed = True
            except (BudgetUnusable, *LOST):
                await asyncio.sleep(RESUME_AGAIN_SECONDS)
        if self._is_resumed and coordination:
            logger.info("took over the slots of the agent before", extra={"fields": {"slots": len(coordination.held)}})
        else:
            logger.warning("the slots of the agent before could not be taken over in time: starting from the floor")
        self._is_resumed = True

    def _lost(self) -> None:
        # Somebody else may take our slots from now on: each millisecond counts.
        self._limits.lower_at_once()
        if self._coordination:
            self._coordination.lost()
        self.wake()

    async def _step(self) -> float:
        async with self._turn:
            pools = await self._limits.read()
            coordination = self._coordination
            reading = Reading(
                now=time.monotonic(),
                pools=pools,
                held=coordination.held if coordination else frozenset(),
                lingering=self._limits.lingering(),
                is_connected=coordination is not None and coordination.is_connected,
                is_draining=self._health.is_draining,
                fleet=coordination.fleet if coordination else None,
                taken_now=coordination.last_taken() if coordination else None,
                is_anybody_hungry=coordination.last_hunger() if coordination else None,
            )
            self._state, decision = step(self._state_for(pools), reading)
            if coordination and not reading.held <= coordination.held:
                return 0.0  # the connection was lost meanwhile: what was decided is no longer true
            await self._limits.apply(decision.limits, decision.shrink)
            # While the database is away its watch asks it, one login at a time; this one would be in its way.
            if coordination and (coordination.is_connected or self._health.database != "paused"):
                coordination.begin(decision)
            self._tell(reading, decision)
            return decision.wait_seconds

    def _state_for(self, pools: dict[PoolKey, PoolUse]) -> State:
        settings = self._settings
        terms = Terms(
            floor=settings.floor,
            shared_slots=settings.shared_slots,
            pools=max(len(pools), 1),
            is_alone=not settings.shares_budget,
            most_tasks_alive=settings.most_tasks_alive,
            tick_seconds=settings.agent_tick_seconds,
        )
        if self._state:
            return replace(self._state, terms=terms)  # a client's role may have come or gone
        # After a restart the slots that were taken over go on being needed for as long as any others.
        demand = Demand({key: Peak(time.monotonic(), use.limit) for key, use in pools.items()})
        is_inheriting = bool(self._coordination and self._coordination.held)
        return State(
            terms,
            seed=random.getrandbits(32),
            demand=demand if is_inheriting else Demand(),
        )

    def _tell(self, reading: Reading, decision: Decision) -> None:
        self._health.budget = BudgetStatus.of(self._settings, reading, decision, self._coordination)
