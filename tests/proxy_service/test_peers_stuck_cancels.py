"""Cancel requests that arrive together: PgBouncer passes on the first, the agent has it send the others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_proxy.agent.stuck_cancels import cancel_request, is_stuck, move_on
from emberpool_proxy.pgbouncer.rows import PeerPoolRow

from ..local_lambda import wait_until
from .bare_pgbouncer import BarePgbouncer, bare_pgbouncer

PEER, PEER_HOST, PEER_PORT = 7, "127.0.0.2", free_port()


@pytest.fixture
def pgbouncer(pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    peers = f"[peers]\n{PEER} = host={PEER_HOST} port={PEER_PORT} pool_size=4"
    with bare_pgbouncer(pgbouncer_program, {}, settings={"peer_id": "1"}, sections=peers) as running:
        yield running


@asynccontextmanager
async def a_peer() -> AsyncIterator[list[bytes]]:
    """A peer that takes cancel requests and does nothing; gives the list of their keys."""
    keys: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keys.append((await reader.readexactly(16))[8:])
        writer.close()

    async with await asyncio.start_server(answer, PEER_HOST, PEER_PORT):
        yield keys


async def send_at_once(pgbouncer: BarePgbouncer, requests: list[bytes]) -> None:
    """Have PgBouncer find all requests in its sockets when it looks."""
    os.kill(pgbouncer.child.pid, signal.SIGSTOP)
    try:
        for request in requests:
            _, writer = await asyncio.open_connection("127.0.0.1", pgbouncer.port)
            writer.write(request)
            await writer.drain()
    finally:
        os.kill(pgbouncer.child.pid, signal.SIGCONT)


def query_of(key: bytes) -> bytes:
    """Return the part of a key that is the same at every hop: the rest counts the hops."""
    return key[:7]


async def test_requests_that_arrive_together_all_arrive(pgbouncer: BarePgbouncer) -> None:
    """Of five requests at once PgBouncer sends one; after the agent's help the peer has all five, and none waits."""
    requests = [cancel_request(PEER) for _ in range(5)]
    async with a_peer() as arrived, await pgbouncer.console() as console:
        await send_at_once(pgbouncer, requests)
        await wait_until("no request arrived", lambda: len(arrived) >= 1)
        assert [row.cl_waiting_cancel_req for row in await console.show_peer_pools()] == [4]
        assert await move_on(console, pgbouncer.folder, pgbouncer.port) == 4
        asked = {query_of(request[8:]) for request in requests}
        await wait_until("a request did not arrive", lambda: {query_of(key) for key in arrived} >= asked)
        assert [row.cl_waiting_cancel_req for row in await console.show_peer_pools()] == [0]
        assert await move_on(console, pgbouncer.folder, pgbouncer.port) == 0


def test_request_whose_connection_is_being_opened_is_left_alone() -> None:
    """Only what waits for a connection that nobody opens is stuck."""
    assert is_stuck(PeerPoolRow(peer_id=1, cl_waiting_cancel_req=1))
    assert not is_stuck(PeerPoolRow(peer_id=1, cl_waiting_cancel_req=2, sv_login=1))
    assert not is_stuck(PeerPoolRow(peer_id=1, cl_active_cancel_req=1, sv_active_cancel=1))
