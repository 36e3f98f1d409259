"""Many callers, some of whom go away, while backends are terminated and PgBouncer is killed and stopped."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import BeginTransaction, CommitTransaction, ExecuteStatement, Place
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.leases import LeaseLimits
from emberpool_proxy.data_endpoint.once import Answers

from .endpoint_pool import EndpointPool, Running, endpoint_pool, fact, operations

CALLERS, CALLS = 12, 50
TERMINATE = """select pg_terminate_backend(pid) from
    (select pid from pg_stat_activity where usename = 'data_role' order by random() limit 2) chosen"""


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_at_random", query_wait_seconds=1) as running:
        yield running


@dataclass
class Told:
    """What the callers were told of each thing that they wanted to be kept."""

    kept: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    async def of(self, thing: str, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
            self.kept.add(thing)
        except asyncio.CancelledError:
            pass
        except DataError as error:
            if "unknown" in error.message:
                self.unknown.add(thing)


class Callers:
    """Callers that insert things, each in one of two ways."""

    def __init__(self, data: Running, told: Told) -> None:
        self.data, self.told, self.answers = data, told, Answers()

    async def call(self, number: int) -> None:
        for attempt in range(CALLS):
            thing = f"{number}-{attempt}"
            way: Callable[[str], Coroutine[Any, Any, Any]] = random.choice((self.statement, self.transaction))
            work = asyncio.ensure_future(self.told.of(thing, way(thing)))
            if random.random() < 0.3:
                asyncio.get_running_loop().call_later(random.random() * 0.02, work.cancel)
            await work

    async def statement(self, thing: str) -> None:
        call = ExecuteStatement(f"insert into things select '{thing}' from pg_sleep(0.01)")
        caller = self.data.pool.caller()
        await self.answers.once(thing.encode(), lambda: self.data.operations.run(caller, call))

    async def transaction(self, thing: str) -> None:
        transaction = (await self.data.run(BeginTransaction()))["transactionId"]
        place = Place(transaction_id=transaction)
        await self.data.run(ExecuteStatement(f"insert into things values ('{thing}')", place))
        await self.data.run(CommitTransaction(transaction))


async def faults(pool: EndpointPool, are_over: asyncio.Event) -> None:
    while not are_over.is_set():
        await asyncio.sleep(random.random() * 0.4)
        fault = random.random()
        if fault < 0.6:
            pool.sql(TERMINATE)
        elif fault < 0.8:
            pool.signal(signal.SIGKILL)
            pool.child.process.wait()
            pool.again()
        else:
            pool.signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)
            pool.signal(signal.SIGCONT)


async def served(data: Running) -> None:
    """Return when a call is answered: PgBouncer may not have noticed the end of its last server connections yet."""
    for _ in range(20):
        with suppress(DataError):
            assert await data.values("select 1") == [[1]]
            return
    raise AssertionError("no call is answered after the faults")


async def test_nothing_acknowledged_is_lost_and_nothing_is_left_behind(pool: EndpointPool) -> None:
    """What was answered is there; what is there was answered, or its outcome was said to be unknown."""
    random.seed(1)
    told, are_over = Told(), asyncio.Event()
    limits = LeaseLimits(idle_seconds=0.5, look_seconds=0.05)
    async with operations(pool, statement_seconds=1.0, limits=limits) as data:
        await data.values("create table things (name text primary key)")
        callers = Callers(data, told)
        breaking = asyncio.ensure_future(faults(pool, are_over))
        await asyncio.gather(*(callers.call(number) for number in range(CALLERS)))
        are_over.set()
        await breaking
        await served(data)
        await fact("a transaction is open", lambda: not data.operations.open_transactions)
        await fact("a statement goes on", lambda: not pool.running())
        there = {name for (name,) in pool.sql("select name from things")}
        assert told.kept
        assert not told.kept - there
        assert not there - told.kept - told.unknown
        assert data.sessions.sessions <= CALLERS
