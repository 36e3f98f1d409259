"""PAUSE, RESUME and what lies between them, on a real PgBouncer whose database was away."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.lab.switched_address import switched_address
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.database_gate import Gate
from emberpool_proxy.agent.database_state import Answer

from .bare_pgbouncer import BarePgbouncer, add_role, bare_pgbouncer
from .watched_pool import BOUND_SECONDS, POOL_SETTINGS, REFUSED, WatchedEngines, entry, states, until


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this module's own, to be taken away."""
    with EmbeddedPostgres(max_connections=40) as server:
        add_role(server)
        yield server


@pytest.fixture
def pool(mortal: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    """A PgBouncer in front of it; it runs again after the test."""
    with bare_pgbouncer(pgbouncer_program, entry(mortal.host, mortal.port), settings=POOL_SETTINGS) as running:
        yield running
    if not mortal.is_running:
        mortal.start()


@pytest.fixture
async def gate(pool: BarePgbouncer) -> AsyncIterator[Gate]:
    """The gate of that PgBouncer."""
    engines = WatchedEngines([pool])
    await engines.open()
    opened = Gate(engines, engines.all[0], handover_seconds=1.0)
    await opened.open()
    yield opened
    await opened.close()
    await engines.close()


async def wait_out_an_outage(mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate) -> None:
    """Leave the pool as an outage does: without a server connection, its last login failed, paused, database back."""
    asking = psycopg.connect(pool.conninfo(), autocommit=True)
    asking.execute("select 1")
    await asyncio.to_thread(mortal.stop)
    ask(asking)
    await asyncio.to_thread(pool.line_with, "connect failed")
    gate.pause()
    await asyncio.to_thread(pool.line_with, "PAUSE command")
    asking.close()
    await asyncio.to_thread(mortal.start)


def ask(client: psycopg.Connection[tuple[object, ...]]) -> None:
    """Send a query and do not wait for its answer."""
    client.pgconn.send_query(b"select 1")
    client.pgconn.flush()


def answer(client: psycopg.Connection[tuple[object, ...]]) -> bytes | None:
    """Wait for the answer to what was asked, in a thread: libpq's own wait would keep the others from running."""
    while client.pgconn.is_busy():
        assert select.select([client.pgconn.socket], [], [], BOUND_SECONDS)[0], "no answer came"
        client.pgconn.consume_input()
    result = client.pgconn.get_result()
    assert result
    assert not result.error_message
    assert not client.pgconn.get_result()
    return result.get_value(0, 0)


def query(client: psycopg.Connection[tuple[object, ...]]) -> tuple[object, ...] | None:
    return client.execute("select 1").fetchone()


async def test_plain_resume_would_refuse_the_first_client(
    mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate
) -> None:
    """PgBouncer alone refuses the client that comes first after an outage: what the handover is for."""
    with psycopg.connect(pool.conninfo(), autocommit=True) as client:
        client.execute("select 1")
        await wait_out_an_outage(mortal, pool, gate)
        gate.order("RESUME")
        await asyncio.to_thread(pool.line_with, "RESUME command")
        with pytest.raises(psycopg.OperationalError, match=REFUSED):
            client.execute("select 1")


async def test_handover_refuses_nobody(mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate) -> None:
    """After a handover the first client is served, although nobody waited in line before."""
    with psycopg.connect(pool.conninfo(), autocommit=True) as client:
        client.execute("select 1")
        await wait_out_an_outage(mortal, pool, gate)
        assert await gate.hand_over(reconnect=False) is Answer.WRITABLE
        assert await states([pool]) == ["active"]
        assert query(client) == (1,)


async def test_handover_serves_those_in_line(mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate) -> None:
    """Clients that have waited since the outage are served, more of them than there are server connections."""
    clients = [psycopg.connect(pool.conninfo(), autocommit=True) for _ in range(10)]
    for client in clients:
        client.execute("select 1")
    await wait_out_an_outage(mortal, pool, gate)
    for client in clients:
        ask(client)
    while not (view := await gate.look()) or view.clients_waiting < len(clients):  # noqa: ASYNC110 (of another process)
        await asyncio.sleep(0.01)
    assert await gate.hand_over(reconnect=False) is Answer.WRITABLE
    assert [await asyncio.to_thread(answer, client) for client in clients] == [b"1"] * len(clients)
    for client in clients:
        client.close()


async def test_query_during_a_handover_is_not_refused(
    mortal: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram
) -> None:
    """A client that comes between the RESUME and the pool's first login is served like the others."""
    async with switched_address(LOOPBACK, mortal.port) as address:
        with bare_pgbouncer(pgbouncer_program, entry(LOOPBACK, address.port), settings=POOL_SETTINGS) as pool:
            engines = WatchedEngines([pool])
            await engines.open()
            gate = Gate(engines, engines.all[0])
            await gate.open()
            with await asyncio.to_thread(psycopg.connect, pool.conninfo(), autocommit=True) as client:
                await asyncio.to_thread(query, client)
                # The forwarder hangs up on those whom it cannot lead on.
                await asyncio.to_thread(mortal.stop)
                with await asyncio.to_thread(psycopg.connect, pool.conninfo(), autocommit=True) as first:
                    ask(first)
                    await asyncio.to_thread(pool.line_with, "(age=0s)")
                    gate.pause()
                    await asyncio.to_thread(pool.line_with, "PAUSE command")
                    await asyncio.to_thread(mortal.start)
                    address.hold()
                    handover = asyncio.create_task(gate.hand_over(reconnect=False))
                    await until("the pool logs in", lambda: address.held)
                    ask(client)
                    assert engines.all[0].console
                    await engines.all[0].console.show_state()  # PgBouncer has been round its sockets since
                    address.lead_on()
                    assert await asyncio.to_thread(answer, client) == b"1"
                    assert await handover is Answer.WRITABLE
                    assert await asyncio.to_thread(answer, first) == b"1"
            await gate.close()
            await engines.close()


async def test_handover_to_a_database_that_is_away_pauses_again(
    mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate
) -> None:
    """When the pool cannot log in after all, its clients go on waiting."""
    await wait_out_an_outage(mortal, pool, gate)
    await asyncio.to_thread(mortal.stop)
    assert await gate.hand_over(reconnect=False) is Answer.AWAY
    assert await states([pool]) == ["paused"]


async def test_pause_waits_for_nobody(mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate) -> None:
    """A transaction that runs keeps neither the PAUSE nor the looks at the pool waiting, and ends as it began."""
    with psycopg.connect(pool.conninfo()) as client:
        client.execute("select 1")
        assert gate.pause()
        view = await gate.look()
        assert view is not None
        assert (view.state, view.servers) == ("paused", 1)
        client.commit()
    await until("the connection is kept", lambda: "pause mode" in "\n".join(pool.log_lines()))
    assert await gate.hand_over(reconnect=True) is Answer.WRITABLE


async def test_gate_follows_its_process(mortal: EmbeddedPostgres, pool: BarePgbouncer, gate: Gate) -> None:
    """Orders to a PgBouncer that has ended go nowhere, without an error."""
    pool.child.kill()
    assert await gate.look() is None
    assert not gate.pause()
    assert await gate.hand_over(reconnect=False) is Answer.NOT_ASKED
