"""Another server takes the database's place: a failover, an old writer that is read-only now, a name that moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import psycopg
import pytest

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.lab.switched_address import switched_address
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.postgres.standby import PRIMARY_SETTINGS, StandbyPostgres

from .bare_pgbouncer import add_role, bare_pgbouncer
from .watched_pool import POOL_SETTINGS, POOL_SIZE, REFUSED, entry, make_ledger, until, watching, writing

READ_ONLY = "read-only transaction"


@pytest.fixture
def pair() -> Iterator[tuple[EmbeddedPostgres, StandbyPostgres]]:
    """A primary and a standby that has every commit that the primary acknowledges."""
    with EmbeddedPostgres(max_connections=40, settings=PRIMARY_SETTINGS) as primary:
        add_role(primary)
        make_ledger(primary)
        with StandbyPostgres(primary) as standby:
            yield primary, standby


async def test_failover_costs_only_what_was_in_flight(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], pgbouncer_program: PgbouncerProgram
) -> None:
    """When the writer dies and its standby takes over, no commit is lost and no work begun meanwhile fails."""
    primary, standby = pair
    async with switched_address(LOOPBACK, primary.port) as address:
        with bare_pgbouncer(pgbouncer_program, entry(LOOPBACK, address.port), settings=POOL_SETTINGS) as pool:
            async with watching([pool], LOOPBACK, address.port) as health, writing([pool.conninfo()]) as ledger:
                await until("nobody writes", lambda: len(ledger.acknowledged) > 50)
                await asyncio.to_thread(primary.stop, "immediate")
                await until("new work is not made to wait", lambda: health.database == "paused")
                paused = time.monotonic()
                address.switch(LOOPBACK, standby.port)  # the name is ahead of the promotion
                await asyncio.to_thread(standby.promote)
                promoted = time.monotonic()
                await until("nobody writes", lambda: ledger.written_since(promoted) > 50)
    ledger.check(standby)
    assert [failure for failure in ledger.failures if failure.begun > paused and REFUSED in failure.message] == []
    assert [failure for failure in ledger.failures if READ_ONLY in failure.message] == []
    assert len([failure for failure in ledger.failures if REFUSED not in failure.message]) <= POOL_SIZE


async def test_pool_leaves_a_server_that_takes_no_writes(
    pair: tuple[EmbeddedPostgres, StandbyPostgres], pgbouncer_program: PgbouncerProgram
) -> None:
    """Led to a server in recovery, writes wait instead of failing, and go on when it is promoted.

    A pool that need not write is served by it.
    """
    primary, standby = pair
    with bare_pgbouncer(pgbouncer_program, entry(LOOPBACK, standby.port), settings=POOL_SETTINGS) as pool:
        async with watching([pool], LOOPBACK, standby.port, database_must_be_writable="no") as health:
            with psycopg.connect(pool.conninfo(), autocommit=True) as client:
                await until("the pool was not asked", lambda: client.execute("select 1") and health.database == "up")
    async with switched_address(LOOPBACK, primary.port) as address:
        with bare_pgbouncer(pgbouncer_program, entry(LOOPBACK, address.port), settings=POOL_SETTINGS) as pool:
            async with watching([pool], LOOPBACK, address.port) as health, writing([pool.conninfo()]) as ledger:
                await until("nobody writes", lambda: len(ledger.acknowledged) > 50)
                address.switch(LOOPBACK, standby.port)
                address.cut()
                await until("writes go on failing", lambda: health.database == "paused")
                # What ran when it was noticed may still fail; what came after waits.
                paused = time.monotonic()
                await asyncio.to_thread(primary.stop)
                await asyncio.to_thread(standby.promote)
                promoted = time.monotonic()
                await until("nobody writes", lambda: ledger.written_since(promoted) > 50)
    ledger.check(standby)
    assert [failure.message for failure in ledger.failures if failure.begun > paused] == []


async def test_pool_follows_the_name_to_its_new_address(pgbouncer_program: PgbouncerProgram) -> None:
    """Connections to an address that the database's name no longer has are replaced."""
    # PgBouncer still has the old address, 127.0.0.2, as if it had resolved the name before the failover.
    with EmbeddedPostgres(settings={"listen_addresses": "127.0.0.1,127.0.0.2"}) as server:
        add_role(server)
        with bare_pgbouncer(pgbouncer_program, entry("127.0.0.2", server.port), settings=POOL_SETTINGS) as pool:
            async with watching([pool], "localhost", server.port):
                with psycopg.connect(pool.conninfo(), autocommit=True) as client:
                    first = backend(client)
                    await until("the old connection stays", lambda: backend(client) != first)


def backend(client: psycopg.Connection[tuple[object, ...]]) -> object:
    row = client.execute("select pg_backend_pid()").fetchone()
    assert row is not None
    return row[0]
