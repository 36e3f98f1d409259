"""The database goes away and comes back under clients that write: what they see of it, with the real parts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres, StopMode

from .bare_pgbouncer import DATABASE, ROLE, BarePgbouncer, add_role, bare_pgbouncer
from .watched_pool import (
    POOL_SETTINGS,
    POOL_SIZE,
    REFUSED,
    all_become,
    entry,
    make_ledger,
    states,
    until,
    watching,
    writing,
)


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this module's own, to be taken away."""
    with EmbeddedPostgres(max_connections=40) as server:
        add_role(server)
        yield server


@pytest.fixture
def database(mortal: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """The same, running, with an empty ledger; running again after the test."""
    make_ledger(mortal)
    yield mortal
    if not mortal.is_running:
        mortal.start()


@pytest.fixture
def pools(database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[list[BarePgbouncer]]:
    """Two PgBouncers in front of the database, as a task with two vCPUs has them."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                bare_pgbouncer(pgbouncer_program, entry(database.host, database.port), settings=POOL_SETTINGS)
            )
            for _ in range(2)
        ]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restart_costs_only_what_was_in_flight(
    database: EmbeddedPostgres, pools: list[BarePgbouncer], mode: StopMode
) -> None:
    """Over a restart no acknowledged commit is lost, none is there twice, and no work begun after it is refused."""
    async with (
        watching(pools, database.host, database.port) as health,
        writing([pool.conninfo() for pool in pools]) as ledger,
    ):
        await until("nobody writes", lambda: len(ledger.acknowledged) > 50)
        await asyncio.to_thread(database.stop, mode)
        await until("new work is not made to wait", lambda: health.database == "paused")
        paused = time.monotonic()
        await asyncio.to_thread(database.start)
        started = time.monotonic()
        await until("the pool is not resumed", lambda: health.database == "up")
        await until("nobody writes after the restart", lambda: ledger.written_since(started) > 50)
    ledger.check(database)
    begun_later = [failure for failure in ledger.failures if failure.begun > paused and REFUSED in failure.message]
    assert begun_later == []
    in_flight = [failure for failure in ledger.failures if REFUSED not in failure.message]
    assert len(in_flight) <= POOL_SIZE * len(pools)


async def test_first_client_of_an_empty_pool_waits_for_the_database(
    database: EmbeddedPostgres, pools: list[BarePgbouncer]
) -> None:
    """A client that comes while the database is down, as a paused one is, gets its answer as soon as it is up."""
    database.stop()

    def first_query(pool: BarePgbouncer) -> tuple[object, ...] | None:
        with psycopg.connect(pool.conninfo(), connect_timeout=20) as connection:
            return connection.execute("select 1").fetchone()

    async with watching(pools, database.host, database.port) as health:
        first = asyncio.create_task(asyncio.to_thread(first_query, pools[0]))
        await until("the watch did not notice", lambda: health.database == "paused")
        # Another comes while the first one waits.
        second = asyncio.create_task(asyncio.to_thread(first_query, pools[1]))
        await asyncio.to_thread(database.start)
        assert await asyncio.gather(first, second) == [(1,), (1,)]
        await until("the pool is not resumed", lambda: health.database == "up")


async def test_idle_pool_leaves_no_connection_behind(
    database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram
) -> None:
    """With a client that does nothing, the pool's connections end, and the watch neither keeps nor opens one."""
    settings = {**POOL_SETTINGS, "server_idle_timeout": "1"}
    with bare_pgbouncer(pgbouncer_program, entry(database.host, database.port), settings=settings) as pool:
        async with watching([pool], database.host, database.port) as health:
            with psycopg.connect(pool.conninfo(), autocommit=True) as client:
                await until("the pool was not asked", lambda: client.execute("select 1") and health.database == "up")
                await until("server connections stay", lambda: not backends(database))
                logins = login_count(database)
                await asyncio.sleep(1.0)  # five looks of the watch
                assert login_count(database) == logins
                client.execute("select 1")


async def test_restarted_agent_ends_the_pause_of_its_predecessor(
    database: EmbeddedPostgres, pools: list[BarePgbouncer]
) -> None:
    """When the agent ends while the pool is paused, the next one resumes it once the database is back."""
    async with writing([pool.conninfo() for pool in pools]) as ledger:
        async with watching(pools, database.host, database.port) as health:
            await until("nobody writes", lambda: len(ledger.acknowledged) > 10)
            await asyncio.to_thread(database.stop)
            await until("new work is not made to wait", lambda: health.database == "paused")
            await all_become("paused", pools)
        await asyncio.to_thread(database.start)
        started = time.monotonic()
        assert await states(pools) == ["paused", "paused"]
        async with watching(pools, database.host, database.port) as health:
            await until("the pool is not resumed", lambda: health.database == "up")
            await until("nobody writes", lambda: ledger.written_since(started) > 10)
    assert await states(pools) == ["active", "active"]
    ledger.check(database)


async def test_hanging_pgbouncer_does_not_hold_up_the_other(
    database: EmbeddedPostgres, pools: list[BarePgbouncer]
) -> None:
    """While one PgBouncer hangs, the other is paused and resumed all the same; the first follows when it wakes."""
    hanging, other = pools
    async with watching(pools, database.host, database.port):
        async with writing([other.conninfo()]) as ledger:
            await until("nobody writes", lambda: len(ledger.acknowledged) > 10)
            os.kill(hanging.child.pid, signal.SIGSTOP)
            try:
                await asyncio.to_thread(database.restart)
                restarted = time.monotonic()
                await until("nobody writes", lambda: ledger.written_since(restarted) > 10)
            finally:
                os.kill(hanging.child.pid, signal.SIGCONT)
        await all_become("active", pools)


async def test_listener_that_hangs_stops_nobody(database: EmbeddedPostgres, pools: list[BarePgbouncer]) -> None:
    """With a stopped postmaster new logins fail, but who has a connection that works is not paused."""
    pool = pools[0]
    async with (
        watching(pools, database.host, database.port) as health,
        writing([pool.conninfo()], clients=2) as ledger,
    ):
        await until("nobody writes", lambda: len(ledger.acknowledged) > 10)
        os.kill(database_pid(database), signal.SIGSTOP)
        try:
            async with writing([pool.conninfo()], clients=6) as more:
                # PgBouncer wants more connections now, and its logins time out.
                await asyncio.to_thread(pool.line_with, "connect timeout")
                seen = len(more.acknowledged)
                await until("nobody writes", lambda: len(more.acknowledged) > seen + 50)
                assert health.database != "paused"
        finally:
            os.kill(database_pid(database), signal.SIGCONT)
    assert ledger.failures + more.failures == []


def backends(database: EmbeddedPostgres) -> int:
    with psycopg.connect(database.conninfo()) as connection:
        row = connection.execute("select count(*) from pg_stat_activity where datname = %s", (DATABASE,)).fetchone()
    assert row is not None
    return int(row[0])


def login_count(database: EmbeddedPostgres) -> int:
    return database.log_path.read_text().count(f"user={ROLE} database={DATABASE}")


def database_pid(database: EmbeddedPostgres) -> int:
    return int((database.data_folder / "postmaster.pid").read_text().split()[0])
