"""A fleet at the mercy of chance: whatever happens to its tasks, its connections stay within the budget."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.pgbouncer.program import PgbouncerProgram

from ..local_lambda import fleet_of
from .conftest import DATABASE, DATABASE_USER
from .fleet_rig import (
    BUDGET,
    BUDGET_NAME,
    CONTROL_GONE_SECONDS,
    FLOOR,
    MOST_TASKS,
    SLOTS,
    FleetRig,
    Task,
    fleet_rig,
)
from .tasks import handler_environment

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("EMBERPOOL_FLEET_SECONDS", "30"))
SEED = int(os.environ.get("EMBERPOOL_FLEET_SEED", "0")) or secrets.randbelow(1_000_000)
FEWEST_TASKS = 2
ENVIRONMENTS = 40  # more than there are server connections: all slots are wanted all the time
LONGEST_SLEEP_SECONDS = 0.06  # two cores bear what the slots can do at this length
INVOCATION_SECONDS = 8.0
# A client that was sent to a task just before it was killed; the balancer needs 0.6 s to notice.
AFTERMATH_SECONDS = 1.5
PAUSE_SECONDS = (0.3, 1.5)
MOST_CRASHES, CRASHES_COUNT_SECONDS = 3, 70.0

HANDLER = """
    from emberpool import warm_connection

    @warm_connection
    def handler(event, context, connection):
        connection.execute("insert into ledger values (%s, pg_sleep(%s)::text)", [event["id"], event["seconds"]])
"""


@pytest.fixture
def rig(pgbouncer_program: PgbouncerProgram, tmp_path: Path) -> Iterator[FleetRig]:
    with fleet_rig(pgbouncer_program, tmp_path) as running:
        # Without a key, so that what runs twice is seen.
        with psycopg.connect(running.server.conninfo(database=DATABASE), autocommit=True) as admin:
            admin.execute("create table ledger (id bigint, slept text)")
            admin.execute(f"alter table ledger owner to {DATABASE_USER}")
        yield running


@dataclass(frozen=True)
class Invocation:
    """One invocation, on the clock of time.monotonic()."""

    number: int
    begun: float
    ended: float
    outcome: Outcome


@dataclass
class Load:
    """Keeps all environments busy and remembers what came of each invocation."""

    fleet: Fleet
    chance: random.Random
    succeeded: set[int] = field(default_factory=set)
    failed: list[Invocation] = field(default_factory=list)
    next_number: int = 0
    is_over: bool = False

    async def work(self) -> None:
        """Invoke one time after the other."""
        while not self.is_over:
            number, begun = self.next_number, time.monotonic()
            self.next_number += 1
            event = {"id": number, "seconds": self.chance.uniform(0.001, LONGEST_SLEEP_SECONDS)}
            outcome = await self.fleet.invoke(json.dumps(event).encode())
            if outcome.status == "succeeded":
                self.succeeded.add(number)
            else:
                self.failed.append(Invocation(number, begun, time.monotonic(), outcome))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Invoke until the context is left; then wait for what is under way."""
        workers = [asyncio.create_task(self.work()) for _ in range(ENVIRONMENTS)]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*workers)


@dataclass
class Fate:
    """What happens to the fleet: from a seed, one thing after the other, partitions beside them."""

    rig: FleetRig
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    excuses: list[tuple[float, float]] = field(default_factory=list)  # times in which invocations may be hit
    partitioned: set[str] = field(default_factory=set)
    gone_but_counted: list[float] = field(
        default_factory=list
    )  # until when the database keeps vanished tasks' backends
    crashes: dict[str, list[float]] = field(default_factory=dict)  # times, by task
    beside: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        """Do things for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self.chance.uniform(*PAUSE_SECONDS))
            thing = self.chance.choice(self.possible())
            self.counts[thing.__name__.strip("_")] += 1
            await thing()
        for task in self.beside:
            task.cancel()
        await asyncio.gather(*self.beside, return_exceptions=True)
        for host in self.partitioned:
            self.rig.end_silence(host)

    def possible(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return what may happen now: at most MOST_TASKS are alive, as the database sees it, and two can serve."""
        alive = len(self.rig.tasks) + sum(until > time.monotonic() for until in self.gone_but_counted)
        things = [self._end_control_connection]
        if self.may_crash():
            things += [self._kill_agent, self._kill_pgbouncer]
        if alive < MOST_TASKS:
            things += 2 * [self._add]
        if len(self.rig.tasks) - len(self.partitioned) > FEWEST_TASKS:
            things += [self._drain, self._kill, self._vanish, self._partition]
        return things

    def one(self) -> Task:
        """Return a task that is not partitioned."""
        return self.chance.choice([task for task in self.rig.tasks if task.host not in self.partitioned])

    def may_crash(self) -> list[Task]:
        """Return the tasks that bear one more crash: a supervisor gives up after some in a minute."""
        lately = time.monotonic() - CRASHES_COUNT_SECONDS
        return [
            task
            for task in self.rig.tasks
            if task.host not in self.partitioned
            and sum(at > lately for at in self.crashes.get(task.host, [])) < MOST_CRASHES
        ]

    def one_to_crash(self) -> Task:
        """Return a task that bears one more crash, and count that."""
        task = self.chance.choice(self.may_crash())
        self.crashes.setdefault(task.host, []).append(time.monotonic())
        return task

    async def _add(self) -> None:
        await asyncio.to_thread(self.rig.add)

    async def _drain(self) -> None:
        await asyncio.to_thread(self.rig.drain, self.one())

    async def _kill_agent(self) -> None:
        await asyncio.to_thread(self.rig.kill_agent, self.one_to_crash())

    async def _end_control_connection(self) -> None:
        await asyncio.to_thread(self.rig.end_control_connection, self.one())

    async def _kill(self) -> None:
        self.excuse(AFTERMATH_SECONDS)
        await asyncio.to_thread(self.rig.kill, self.one())

    async def _kill_pgbouncer(self) -> None:
        self.excuse(AFTERMATH_SECONDS)
        await asyncio.to_thread(self.rig.kill_pgbouncer, self.one_to_crash())

    async def _vanish(self) -> None:
        self.excuse(AFTERMATH_SECONDS)
        await asyncio.to_thread(self.rig.vanish, self.one())
        self.gone_but_counted.append(time.monotonic() + CONTROL_GONE_SECONDS + 1)

    async def _partition(self) -> None:
        task = self.one()
        seconds = self.chance.choice([1.0, 5.0, CONTROL_GONE_SECONDS + 2])
        self.excuse(seconds + INVOCATION_SECONDS)
        self.partitioned.add(task.host)
        await asyncio.to_thread(self.rig.partition, task)
        beside = asyncio.create_task(self._heal(task, seconds))
        self.beside.add(beside)
        beside.add_done_callback(self.beside.discard)

    async def _heal(self, task: Task, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.rig.heal, task)
        self.partitioned.discard(task.host)

    def excuse(self, seconds: float) -> None:
        """Let invocations fail that are under way in the next so many seconds."""
        self.excuses.append((time.monotonic(), time.monotonic() + seconds))

    def is_excused(self, invocation: Invocation) -> bool:
        """Whether the invocation was under way when something happened that may hit it."""
        return any(invocation.begun <= until and since <= invocation.ended for since, until in self.excuses)


@pytest.mark.timeout(SECONDS + 150)
async def test_database_never_has_more_connections_than_the_budget(rig: FleetRig, tmp_path: Path) -> None:
    """In no sample are there more connections than agreed, and only those invocations fail that a kill may hit."""
    logger.info("EMBERPOOL_FLEET_SEED=%d", SEED)
    fate = Fate(rig, random.Random(SEED))
    for _ in range(FEWEST_TASKS):
        await asyncio.to_thread(rig.add)
    path = tmp_path / "samples.jsonl"
    sampler = BackendSampler(rig.server.conninfo(database=DATABASE), DATABASE_USER, BUDGET_NAME, path)
    async with fleet_of(
        tmp_path,
        HANDLER,
        environment=handler_environment(rig.balancer),
        freeze_when_idle=False,
        max_environments=ENVIRONMENTS,
        timeout_seconds=INVOCATION_SECONDS,
    ) as fleet:
        await fleet.scale_out(ENVIRONMENTS)
        load = Load(fleet, random.Random(SEED))
        with sampler:
            async with load.running():
                await fate.run(SECONDS)
            await asyncio.to_thread(rig.wait_until_quiet)
    told = f"seed {SEED}; {dict(fate.counts)}; {load.next_number} invocations, {len(load.failed)} failed; "
    told += sampler.summary()
    logger.info(told)
    above = sampler.above(BUDGET) or sampler.above_slots(FLOOR, SLOTS)
    assert len(above) == 0, f"{told}\n{sampler.time_line(above[0].at, rig.notes)}"
    unexcused = [each for each in load.failed if not fate.is_excused(each)]
    assert not unexcused, f"{told}\n{_shown(unexcused, rig, sampler)}"
    _check_ledger(rig, load)


def _shown(failed: list[Invocation], rig: FleetRig, sampler: BackendSampler) -> str:
    begin = sampler.samples[0].at
    lines = [
        f"{one.begun - begin:8.3f} to {one.ended - begin:8.3f}: {one.outcome.error_type}: {one.outcome.error_message}"
        for one in failed[:5]
    ]
    return "\n".join([f"{len(failed)} failed", *lines, sampler.time_line(failed[0].ended, rig.notes)])


def _check_ledger(rig: FleetRig, load: Load) -> None:
    """What succeeded is there once; what failed may be there, once at most."""
    rows = Counter(row[0] for row in rig.ask("select id from ledger"))
    assert [number for number, count in rows.items() if count > 1] == [], "ran twice"
    assert load.succeeded - set(rows) == set(), "was lost"
