"""What becomes of the slots when tasks get busy, come, go and fail: one thing at a time, with real tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_proxy import metrics

from .conftest import DATABASE, DATABASE_USER
from .fleet_rig import (
    BUDGET,
    BUDGET_NAME,
    FLOOR,
    MAX_CONNECTIONS,
    MOST_OF_ALL,
    MOST_TASKS,
    SLOTS,
    FleetRig,
    Task,
    demand,
    fleet_rig,
    has_most,
    until,
)

MANY = FLOOR + SLOTS + 10  # clients of one task that want more than there is
ROOM_LEFT = 5  # slots that the database still has room for
RESERVED = 15  # the setting's default


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetRig]:
    """Three tasks; a test that ends one starts another."""
    with fleet_rig(pgbouncer_program, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
def tasks(rig: FleetRig) -> list[Task]:
    while len(rig.tasks) < MOST_TASKS - 1:
        rig.add()
    return list(rig.tasks)


@pytest.fixture(autouse=True)
def within_budget(rig: FleetRig, tasks: list[Task], tmp_path: Path) -> Iterator[BackendSampler]:
    """Whatever a test does, no sample is above the budget."""
    path = tmp_path / "samples.jsonl"
    with BackendSampler(rig.server.conninfo(database=DATABASE), DATABASE_USER, BUDGET_NAME, path) as sampler:
        yield sampler
    above = sampler.above(BUDGET) or sampler.above_slots(FLOOR, SLOTS)
    assert len(above) == 0, f"{sampler.summary()}\n{sampler.time_line(above[0].at, rig.notes)}"


async def test_client_that_calls_itself_an_agent_is_counted_as_a_client(rig: FleetRig, tasks: list[Task]) -> None:
    """PgBouncer hands on its clients' application_name: what others see of the fleet must not depend on it."""
    named, other = tasks[:2]
    await until("the other task has not gone to sleep", lambda: other.host not in dict(rig.control_backends()))
    names = "select count(*) from pg_stat_activity where application_name = 'emberpool-orders'"
    async with demand(named, MANY, application_name="emberpool-orders"):
        await has_most(rig, named)
        await until("the names are not there", lambda: rig.ask(names)[0][0] >= FLOOR + MOST_OF_ALL)
        async with demand(other, 1):  # it wakes up, and looks for the first time
            counted = await until("it did not look", lambda: other.document()["budget"]["pool_connections"])
    assert counted >= FLOOR + MOST_OF_ALL


async def test_busy_task_gets_what_the_idle_ones_leave(rig: FleetRig, tasks: list[Task]) -> None:
    """A burst on one task of three takes at least 90% of the free slots, and connections for them."""
    async with demand(tasks[0], MANY) as burst:
        await has_most(rig, tasks[0])
    assert burst.errors == []


async def test_two_hungry_tasks_share_in_proportion_to_their_demand(rig: FleetRig, tasks: list[Task]) -> None:
    """The second comes when the first has everything; 28 and 10 clients above the floor end with 12 and 4 slots."""
    many, few = tasks[:2]
    async with demand(many, FLOOR + 30) as first:
        await has_most(rig, many)
        async with demand(few, FLOOR + 10) as second:
            await until(
                "the slots did not move in proportion",
                lambda: abs(rig.held(many) - 12) <= 2 and abs(rig.held(few) - 4) <= 2,
            )
            await until(
                "the connections did not follow", lambda: rig.backends().get(few.host, 0) == FLOOR + rig.held(few)
            )
    assert first.errors + second.errors == []


async def test_slots_of_a_vanished_task_come_back(rig: FleetRig, tasks: list[Task]) -> None:
    """What a task held that vanished without a FIN is another's, once the database has noticed."""
    lost, heir = tasks[:2]
    async with demand(lost, MANY):
        await has_most(rig, lost)
        async with demand(heir, MANY) as inherited:
            await asyncio.to_thread(rig.vanish, lost, 3.0)
            await has_most(rig, heir)
    assert inherited.errors == []


async def test_killed_agent_leaves_locks_and_connections_as_they_are(
    rig: FleetRig, tasks: list[Task], within_budget: BackendSampler
) -> None:
    """The slots stay taken while there is no agent, the next one has the very same, and no client notices."""
    task = tasks[0]
    async with demand(task, MANY) as load:
        await has_most(rig, task)
        before, begun = rig.slots()[task.host], time.monotonic()
        await asyncio.to_thread(rig.kill_agent, task)
        await until(
            "no other agent took the slots",
            lambda: (task.document().get("budget") or {}).get("slots_held") == len(before),
        )
        assert rig.slots()[task.host] == before
        seen = [sample for sample in within_budget.read() if sample.at > begun]
    assert load.errors == []
    lowest = min(seen, key=lambda sample: sample.pool.get(task.host, 0))
    assert lowest.pool[task.host] >= FLOOR + MOST_OF_ALL, lowest.line(begun)


async def test_task_without_its_control_connection_falls_to_the_floor_and_comes_back(
    rig: FleetRig, tasks: list[Task]
) -> None:
    """When another takes the slots at once, the task has shrunk before they are used; both go on without an error."""
    cut, other = tasks[:2]
    async with demand(cut, MANY) as first, demand(other, FLOOR + 2) as second:
        await has_most_of_two(rig, cut, other)
        assert await asyncio.to_thread(rig.end_control_connection, cut)
        await until("the task did not lose its slots", lambda: rig.held(cut) < SLOTS // 2)
        await has_most_of_two(rig, cut, other)
        assert cut.metric(metrics.BUDGET_CONNECTIONS_LOST) == 1
    assert first.errors + second.errors == []


async def test_slots_that_a_task_lost_in_long_transactions_are_not_used_before_these_end(
    rig: FleetRig, tasks: list[Task], within_budget: BackendSampler
) -> None:
    """A task that is cut off cannot shrink while its clients work; another that gets its slots waits for the count."""
    cut, heir = tasks[:2]
    async with demand(cut, MANY, hold_seconds=1.5) as first:
        await has_most(rig, cut)
        async with demand(heir, MANY) as second:
            assert await asyncio.to_thread(rig.end_control_connection, cut)
            await until("the heir got nothing", lambda: rig.backends().get(heir.host, 0) >= FLOOR + 4)
    assert first.errors + second.errors == []


async def has_most_of_two(rig: FleetRig, many: Task, few: Task) -> None:
    """Return when both have slots, the one with many clients most of them, and all are in use."""
    await until(
        "the slots did not settle",
        lambda: rig.held(many) >= 0.7 * SLOTS and rig.held(few) >= 1 and rig.held() >= MOST_OF_ALL,
    )
    await until("the slots are not used", lambda: rig.backends().get(many.host, 0) >= FLOOR + 0.7 * SLOTS)


async def test_fleet_shrinks_when_the_database_has_less_room_than_promised(rig: FleetRig, tasks: list[Task]) -> None:
    """Others take connections of the database: slots above the room are given back, and a metric says how many lack."""
    floors = MOST_TASKS * (FLOOR + 2)
    async with demand(tasks[0], MANY) as load:
        await has_most(rig, tasks[0])
        async with others(rig, MAX_CONNECTIONS - floors - ROOM_LEFT):
            await until("the fleet did not shrink", lambda: rig.held() <= ROOM_LEFT)
            await until(
                "the connections did not follow", lambda: sum(rig.backends().values()) <= ROOM_LEFT + MOST_TASKS * FLOOR
            )
            await until(
                "the metric does not tell", lambda: (tasks[0].metric(metrics.BUDGET_SHORT_BY) or 0) >= SLOTS - ROOM_LEFT
            )
        await has_most(rig, tasks[0])
        await until("the metric does not tell", lambda: tasks[0].metric(metrics.BUDGET_SHORT_BY) == 0)
    assert load.errors == []


@asynccontextmanager
async def others(rig: FleetRig, clients: int) -> AsyncIterator[None]:
    """Hold connections of the database until it has that many other clients, the sampler's among them."""
    with ExitStack() as stack:

        def connect() -> None:
            conninfo = rig.server.conninfo(database=DATABASE)
            query = "select count(*) from pg_stat_activity where backend_type = 'client backend' and usename <> %s"
            with psycopg.connect(conninfo) as admin:
                row = admin.execute(query, [DATABASE_USER]).fetchone()
            for _ in range(clients - (row[0] if row else 0) + 1):
                stack.enter_context(psycopg.connect(conninfo))

        await asyncio.to_thread(connect)
        yield


async def test_smaller_of_two_budgets_of_one_name_wins(rig: FleetRig, tasks: list[Task]) -> None:
    """A task with a smaller budget joins: the others keep to it while it is there, and a metric of theirs tells."""
    smaller = await asyncio.to_thread(lambda: rig.add(max_server_connections=BUDGET - SLOTS // 2))
    async with demand(tasks[0], MANY) as load:
        await has_most(rig, tasks[0])
        async with demand(smaller, 1):
            await until("the greater budget is still used", lambda: rig.held() <= SLOTS // 2)
            await until("the metric does not tell", lambda: tasks[0].metric(metrics.BUDGET_CLAIM_CONFLICT) == 1)
        await asyncio.to_thread(rig.drain, smaller)
        await has_most(rig, tasks[0])
    assert load.errors == []


async def test_fleet_without_demand_has_no_connection_at_all(rig: FleetRig, tasks: list[Task]) -> None:
    """After work every slot is given back and every connection closed, the control connections too."""
    async with demand(tasks[0], MANY), demand(tasks[1], 5), demand(tasks[2], 1):
        await until("nobody has slots", lambda: rig.held() >= MOST_OF_ALL)
    await asyncio.to_thread(rig.wait_until_quiet)
    for task in tasks:
        assert task.document()["database"]["state"] == "up"
