"""Tasks are replaced under load, one after the other, and no invocation notices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from emberpool_local.lab.balancer import Balancer
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.postgres.server import EmbeddedPostgres

from ..local_lambda import fleet_of
from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER, Proxy, wait_until
from .tasks import Tasks, handler_environment

INVOCATIONS = 20_000
REPLACEMENTS = 5
ENVIRONMENTS = 24
STEADY = 10  # invocations at a time; now and then all environments are needed at once
BURST_SECONDS = 1.0

HANDLER = """
    from emberpool import warm_connection

    @warm_connection
    def handler(event, context, connection):
        connection.execute("insert into ledger values (%s)", [event["id"]])
"""


@pytest.fixture
def ledger(database: EmbeddedPostgres) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A table without a key, so that what runs twice is seen."""
    conninfo = database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("create table ledger (id bigint)")
        yield connection
        connection.execute("drop table ledger")


@pytest.fixture
def tasks(make_proxy: Callable[..., Proxy]) -> Iterator[Tasks]:
    with Balancer(notice_seconds=0.5) as balancer:
        # Clients are closed once the balancer has noticed; it checks every 0.1 s.
        yield Tasks(make_proxy, balancer, {"balancer_notice_seconds": 1.0, "drain_seconds": 3.0, "stop_seconds": 20})


class Load:
    """Invokes the function without a pause and keeps what came of it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.outcomes: Counter[str] = Counter()
        self.failures: list[Outcome] = []
        self.numbers = iter(range(1_000_000))
        self.is_over = False

    async def invoke(self) -> None:
        outcome = await self.fleet.invoke(json.dumps({"id": next(self.numbers)}).encode())
        self.outcomes[outcome.status] += 1
        if outcome.status != "succeeded":
            self.failures.append(outcome)

    async def _steady(self) -> None:
        while not self.is_over:
            await self.invoke()

    async def _bursts(self) -> None:
        while not self.is_over:
            await asyncio.gather(*(self.invoke() for _ in range(ENVIRONMENTS)))
            await asyncio.sleep(BURST_SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._steady()) for _ in range(STEADY)] + [asyncio.create_task(self._bursts())]
        try:
            yield
        finally:
            self.is_over = True
            await asyncio.gather(*tasks)


async def replace(tasks: Tasks, old: Proxy) -> Proxy:
    """Do what ECS does: start a new task, and stop the old one when the new one is healthy."""
    new = await asyncio.to_thread(tasks.start)
    old.terminate()
    await asyncio.to_thread(wait_until, "the old task did not end", lambda: old.exit_code() is not None)
    assert old.exit_code() == 0, old.printed()
    tasks.balancer.remove(tasks.target(old))
    return new


async def test_replacing_every_task_under_load_loses_nothing(
    tasks: Tasks, ledger: psycopg.Connection[tuple[object, ...]], tmp_path: Path
) -> None:
    """Five replacements under 20,000 invocations: none fails, and the ledger has each invocation's row once."""
    running = [await asyncio.to_thread(tasks.start) for _ in range(2)]
    async with fleet_of(
        tmp_path,
        HANDLER,
        environment=handler_environment(tasks.balancer),
        freeze_when_idle=False,
        max_environments=ENVIRONMENTS,
    ) as fleet:
        await fleet.scale_out(ENVIRONMENTS)
        load = Load(fleet)
        async with load.running():
            for _ in range(REPLACEMENTS):
                running.append(await replace(tasks, running.pop(0)))
            while load.outcomes.total() < INVOCATIONS:  # noqa: ASYNC110 (polling is simpler than an event a count)
                await asyncio.sleep(0.1)
    assert [(failure.error_type, failure.error_message) for failure in load.failures] == []
    assert load.outcomes.total() >= INVOCATIONS
    rows = Counter(row[0] for row in ledger.execute("select id from ledger").fetchall())
    assert rows == Counter(range(load.outcomes.total()))
