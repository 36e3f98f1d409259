"""The admin console's client against the real PgBouncer: every answer is typed, every command does what it says."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields

import psycopg
import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.admin import AdminConsole, ClientCount, CommandRefused
from emberpool_proxy.pgbouncer.rows import (
    ClientRow,
    DatabaseRow,
    MemoryRow,
    PeerRow,
    PoolRow,
    ServerRow,
    StatsRow,
    row_maker,
)

from .bare_pgbouncer import CLIENT, DATABASE, ROLE, BarePgbouncer, add_role, bare_pgbouncer, served

ODD_NAME = "Odd-name.of-2026"  # must be quoted for the console
PEERS = "[peers]\n1 = host=127.0.0.1 port=7001 pool_size=4\n2 = host=127.0.0.2 port=7002"


@pytest.fixture
def bare(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    add_role(postgres)
    databases = {DATABASE: served(postgres), ODD_NAME: served(postgres)}
    with bare_pgbouncer(pgbouncer_program, databases, settings={"peer_id": "1"}, sections=PEERS) as running:
        yield running


@pytest_asyncio.fixture
async def console(bare: BarePgbouncer) -> AsyncIterator[AdminConsole]:
    async with await bare.console() as opened:
        yield opened


@pytest_asyncio.fixture
async def client(bare: BarePgbouncer) -> AsyncIterator[psycopg.AsyncConnection]:
    """A client that has a transaction open."""
    async with await psycopg.AsyncConnection.connect(bare.conninfo(application_name="orders")) as connection:
        await connection.execute("select 1")
        yield connection


async def until(sentence: str, fact: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(10):
            while not await fact():  # noqa: ASYNC110 (PgBouncer tells nobody)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(sentence) from None


async def test_pools_clients_and_servers_are_typed(console: AdminConsole, client: psycopg.AsyncConnection) -> None:
    """A client in a transaction is one active client with one active server, linked to each other."""
    (pool,) = [pool for pool in await console.show_pools() if not pool.is_console]
    assert pool == PoolRow(DATABASE, ROLE, cl_active=1, sv_active=1, pool_mode="transaction")
    assert (pool.client_connections, pool.server_connections, pool.max_wait_seconds) == (1, 1, 0.0)
    (row,) = [row for row in await console.show_clients() if row.database == DATABASE]
    (server,) = await console.show_servers()
    assert (row.user, row.state, row.addr, row.application_name) == (CLIENT, "active", "127.0.0.1", "orders")
    assert (row.link, server.link) == (server.ptr, row.ptr)
    assert server.remote_pid > 0
    assert await console.count_clients() == ClientCount(connected=1, waiting=0)


async def test_totals_databases_lists_and_versions_are_typed(
    console: AdminConsole, client: psycopg.AsyncConnection
) -> None:
    """Counts are ints, the database's entry is as it was configured, and the lists count the client."""
    (stats,) = [row for row in await console.show_stats() if row.database == DATABASE]
    assert stats.total_query_count == 2  # BEGIN and the select
    assert type(stats.total_query_count) is int
    (database,) = [row for row in await console.show_databases() if row.name == DATABASE]
    assert (database.host, database.force_user, database.paused) == ("127.0.0.1", ROLE, 0)
    assert (await console.show_lists())["used_clients"] == 2  # the console is one
    assert (await console.show_version()).startswith("PgBouncer 1.")
    assert await console.show_peers() == [PeerRow(1, "127.0.0.1", 7001, 4), PeerRow(2, "127.0.0.2", 7002, 3)]
    assert all(row.name and row.size for row in await console.show_memory())


@pytest.mark.parametrize(
    ("name", "value"),
    [("server_lifetime", "0.2"), ("default_pool_size", "7"), ("auth_query", "select 'it''s' as \"x\"")],
)
async def test_set_value_is_what_show_config_says(console: AdminConsole, name: str, value: str) -> None:
    """SET takes fractions, whole numbers and quotes; the configuration then holds exactly that value."""
    await console.set(name, value)
    row = (await console.show_config())[name]
    assert (row.value, row.changeable) == (value, "yes")


@pytest.mark.parametrize("database", [DATABASE, ODD_NAME, None])
async def test_paused_database_waits_and_resumes(
    console: AdminConsole, bare: BarePgbouncer, database: str | None
) -> None:
    """PAUSE of one database (whatever its name) or of all holds new work back, RESUME lets it go on."""
    await console.pause(database)
    if database:
        assert {row.name for row in await console.show_databases() if row.paused} == {database}

    connecting = asyncio.create_task(psycopg.AsyncConnection.connect(bare.conninfo(dbname=database or DATABASE)))
    await until("the client does not wait", lambda: waiting(console))
    await console.resume(database)
    async with await connecting as connection:
        await connection.execute("select 1")


async def waiting(console: AdminConsole) -> int:
    return (await console.count_clients()).waiting


@pytest.mark.parametrize("database", [DATABASE, None])
async def test_pause_that_is_given_up_stays_in_force_and_blocks_no_other_command(
    console: AdminConsole, bare: BarePgbouncer, client: psycopg.AsyncConnection, database: str | None
) -> None:
    """While a transaction runs PAUSE waits, the console still answers, and giving up waiting is no RESUME."""
    pausing = asyncio.create_task(console.pause(database))
    await asyncio.to_thread(bare.line_with, "LOG PAUSE ")
    assert await console.count_clients() == ClientCount(connected=1, waiting=0)
    assert not pausing.done()
    pausing.cancel()
    await asyncio.wait([pausing])
    await client.commit()
    await until("the server connection was not closed", lambda: no_servers(console))
    again = asyncio.create_task(client.execute("select 1"))
    await until("the client does not wait", lambda: waiting(console))
    await console.resume(database)
    await again


async def no_servers(console: AdminConsole) -> bool:
    return not await console.show_servers()


async def test_reconnect_replaces_the_server_connection(console: AdminConsole, client: psycopg.AsyncConnection) -> None:
    """After RECONNECT the next transaction has another backend, and the one that ran was not disturbed."""
    before = (await console.show_servers())[0].remote_pid
    await console.reconnect(DATABASE)
    await client.commit()
    after = await (await client.execute("select pg_backend_pid()")).fetchone()
    assert after is not None
    assert after[0] != before


async def test_reload_reads_the_files_again(console: AdminConsole, bare: BarePgbouncer) -> None:
    """A setting that was changed in the ini is in force after RELOAD."""
    ini = bare.folder / "pgbouncer.ini"
    ini.write_text(ini.read_text().replace("default_pool_size = 3", "default_pool_size = 9"))
    await console.reload()
    assert (await console.show_config())["default_pool_size"].value == "9"


async def test_killed_client_is_gone_and_cannot_be_killed_again(
    console: AdminConsole, client: psycopg.AsyncConnection
) -> None:
    """KILL_CLIENT closes exactly that client; a second time it is refused with PgBouncer's reason."""
    (row,) = [row for row in await console.show_clients() if row.database == DATABASE]
    await console.kill_client(row.id)
    with pytest.raises(psycopg.OperationalError, match="admin forced disconnect"):
        await client.execute("select 1")
    with pytest.raises(CommandRefused, match=f"refused KILL_CLIENT {row.id}: client not found"):
        await console.kill_client(row.id)


@pytest.mark.parametrize(
    "command",
    [
        lambda console: console.set("no_such_setting", "1"),
        lambda console: console.set("max_client_conn", "many"),
        lambda console: console.pause("no such; database"),
        lambda console: console.resume(DATABASE),
        lambda console: console.reconnect("nowhere"),
    ],
)
async def test_refused_command_says_why_and_leaves_the_console_open(
    console: AdminConsole, command: Callable[[AdminConsole], object]
) -> None:
    """What PgBouncer refuses is CommandRefused with the command in it, and the next command works."""
    with pytest.raises(CommandRefused, match="PgBouncer refused [A-Z]+ "):
        await command(console)
    assert console.is_open
    assert await console.show_version()


async def test_hanging_pgbouncer_costs_the_bound_and_is_asked_again(console: AdminConsole, bare: BarePgbouncer) -> None:
    """A command to a PgBouncer that hangs ends with its bound; once it goes on, the same console answers."""
    os.kill(bare.child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await console.show_pools()
    finally:
        os.kill(bare.child.pid, signal.SIGCONT)
    assert await console.show_version()


async def test_shutdown_for_clients_waits_for_the_last_one(
    console: AdminConsole, bare: BarePgbouncer, client: psycopg.AsyncConnection
) -> None:
    """An open console still answers, new clients are refused, and the end comes with the last client."""
    await console.shutdown_when_clients_have_left()
    assert await console.count_clients() == ClientCount(connected=1, waiting=0)
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect(bare.conninfo(), connect_timeout=5)
    await client.close()
    await console.close()
    await asyncio.to_thread(bare.child.process.wait, 10)


async def test_shutdown_for_servers_lets_the_transaction_end(
    console: AdminConsole, bare: BarePgbouncer, client: psycopg.AsyncConnection
) -> None:
    """A transaction that runs can commit; then PgBouncer ends and the console's next command fails."""
    await console.shutdown_when_servers_are_free()
    await client.execute("select 1")
    await client.commit()
    await asyncio.to_thread(bare.child.process.wait, 10)
    with pytest.raises(psycopg.OperationalError):
        await console.show_version()
    assert not console.is_open


@pytest.mark.parametrize("kind", [PoolRow, ClientRow, ServerRow, StatsRow, DatabaseRow, PeerRow, MemoryRow])
def test_rows_survive_other_versions(kind: type) -> None:
    """Columns that a newer version adds or puts elsewhere, that an older one lacks, or that are null, break nothing."""
    names = [field.name for field in fields(kind)]
    values = {field.name: f"v-{field.name}" if field.type == "str" else 7 for field in fields(kind)}
    newer = ["added", *reversed(names), "added_too"]
    assert row_maker(kind, newer)([values.get(name) for name in newer]) == kind(**values)
    assert row_maker(kind, names[:1])([values[names[0]]]) == kind(values[names[0]])
    assert row_maker(kind, names)([None] * len(names)) == kind()
