"""Many tasks in one process: the real budget loop and real control connections, with pools that only reckon.

What 500 tasks ask of the database is real then, at the rates that they choose; PgBouncers and clients are not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.fleet.coordination import AWAKE, CONTENTION, STEADY, Cost, Statements
from benchmarks.fleet.rig import BUDGET_NAME, FLOOR, Watch, running_database, watching
from benchmarks.proxy.pair import Database

from emberpool_proxy.agent.budget import Budget
from emberpool_proxy.agent.budget_limits import Limits
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse
from emberpool_proxy.agent.slots import Slots
from emberpool_proxy.health import Health
from emberpool_proxy.settings import AGENT_CONNECTIONS, ProxySettings

SLOTS_PER_TASK = 2
SPARE_CONNECTIONS = 60
POOL = PoolKey(0, "bench")
LONG_WAIT_SECONDS = 0.2
SETTLE_SECONDS = 15.0  # many tasks look seldom, so that the database is not asked too much
HUNGRY_SHARE = 10  # one of so many tasks wants, with the others like it, twice the slots
CONNECT_AT_ONCE = 20
LAG_SECONDS = 0.1


class ReckonedPool(Limits):
    """A pool whose clients are a number: it has as many servers as they need and the limit allows."""

    def __init__(self, floor: int) -> None:
        self.clients = 0
        self._limit = floor
        self._servers = 0

    async def read(self) -> dict[PoolKey, PoolUse]:
        """Return what the pool uses now."""
        self._servers = max(min(self.clients, self._limit), min(self._servers, self._limit))
        waiting = max(0, self.clients - self._servers)
        busy = min(self.clients, self._servers)
        wait_seconds = LONG_WAIT_SECONDS if waiting else 0.0
        return {POOL: PoolUse(self._limit, self._servers, busy, waiting, wait_seconds)}

    async def apply(self, limits: Mapping[PoolKey, int], shrink: frozenset[PoolKey]) -> bool:
        """Take over the limit."""
        self._limit = limits[POOL]
        if POOL in shrink:
            self._servers = min(self._servers, self._limit)
        return True

    def lower_at_once(self) -> None:
        """Leave it to the next step."""

    def lingering(self) -> int:
        """Return 0: nothing crashes here."""
        return 0

    async def close(self) -> None:
        """Have nothing to close."""


class Forgetful:
    """Keeps nothing: no agent starts again here."""

    def hold(self, descriptor: int | None) -> None:
        """Drop it."""

    def keep_session(self, process_id: int) -> None:
        """Forget it."""


@dataclass
class SimulatedFleet:
    """The tasks, and how late their process is."""

    pools: list[ReckonedPool]
    lag_seconds: list[float] = field(default_factory=list)

    def demand(self, clients: Sequence[int]) -> None:
        """Give each task so many clients."""
        for pool, count in zip(self.pools, clients, strict=True):
            pool.clients = count


def measure(tasks: int, seconds: float) -> dict[str, Cost]:
    """Return what so many tasks cost the database, by what they do."""
    per_task = FLOOR + AGENT_CONNECTIONS + SLOTS_PER_TASK
    with running_database(tasks * per_task + SPARE_CONNECTIONS) as database, watching(database) as watch:
        return asyncio.run(_measure(database, watch, tasks, seconds))


async def _measure(database: Database, watch: Watch, tasks: int, seconds: float) -> dict[str, Cost]:
    found = {}
    light = [1] * tasks
    some = [FLOOR + SLOTS_PER_TASK if number % 2 else 1 for number in range(tasks)]
    # Those that want more are few, as a burst's are: all of them at once would be this one process's limit.
    greedy = [FLOOR + 2 * HUNGRY_SHARE * SLOTS_PER_TASK if number % HUNGRY_SHARE == 0 else 1 for number in range(tasks)]
    async with running(database, tasks) as fleet:
        statements = Statements(watch)
        for name, clients in ((AWAKE, light), (STEADY, some), (CONTENTION, greedy)):
            fleet.demand(clients)
            await asyncio.sleep(SETTLE_SECONDS)
            before, began = await asyncio.to_thread(statements.read), time.monotonic()
            fleet.lag_seconds.clear()
            await asyncio.sleep(seconds)
            took, lag_seconds = time.monotonic() - began, max(fleet.lag_seconds)
            found[name] = (await asyncio.to_thread(statements.read)).since(before, took, tasks, lag_seconds)
    return found


@asynccontextmanager
async def running(database: Database, tasks: int) -> AsyncIterator[SimulatedFleet]:
    """Run the tasks' loops, all of them connected."""
    access = database.access
    settings = ProxySettings(
        database_host=access.host,
        database_port=access.port,
        database_name=access.name,
        database_user=access.user,
        database_password=access.password,
        server_tls_mode="disable",
        client_user="function",
        client_password="password-of-the-function",
        max_server_connections=tasks * (FLOOR + AGENT_CONNECTIONS + SLOTS_PER_TASK),
        most_tasks_alive=tasks,
        floor_connections=FLOOR,
        budget_name=BUDGET_NAME,
    )
    fleet = SimulatedFleet([ReckonedPool(FLOOR) for _ in range(tasks)])
    fleet.demand([1] * tasks)
    roles, login = frozenset({access.user}), (access.user, access.password)
    budgets = [
        Budget(
            settings,
            pool,
            Slots(settings, str(number), lambda: login, lambda: roles),
            Health(),
            Forgetful(),
            0,
            asyncio.Lock(),
        )
        for number, pool in enumerate(fleet.pools)
    ]
    turn = asyncio.Semaphore(CONNECT_AT_ONCE)

    async def connect(budget: Budget) -> None:
        async with turn:
            await budget.check()

    await asyncio.gather(*map(connect, budgets))
    running_tasks = [asyncio.create_task(budget.run()) for budget in budgets]
    running_tasks.append(asyncio.create_task(_measure_lag(fleet)))
    try:
        yield fleet
    finally:
        for task in running_tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*running_tasks, return_exceptions=True)
        await asyncio.gather(*(budget.close() for budget in budgets))


async def _measure_lag(fleet: SimulatedFleet) -> None:
    while True:
        due = time.monotonic() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        fleet.lag_seconds.append(time.monotonic() - due)
