"""Moves on the cancel requests that PgBouncer has left lying.

PgBouncer opens a connection to a peer when a cancel request for it arrives, except while it opens one already. So of
two requests within a round trip the second waits until a third comes, or is dropped after `cancel_wait_timeout` (10 s);
1.24 to 1.25.2 do. Here is the third one: a request that cancels nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import struct
from pathlib import Path

import psycopg

from emberpool_proxy.agent.engines import ANSWER_SECONDS, Engines
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole, CommandRefused
from emberpool_proxy.pgbouncer.rows import PeerPoolRow
from emberpool_proxy.settings import ProxySettings

CANCEL_REQUEST = 80877102  # PostgreSQL's protocol
CONNECTED_SECONDS = 0.005  # until PgBouncer has connected to the peer and sent one request
MOST_AT_ONCE = 100
WAITING_STATE = "waiting_cancel_req"


async def move_stuck_cancels(settings: ProxySettings, engines: Engines) -> None:
    """Look at every PgBouncer each tick. Without a fleet nothing sticks: all peers have unix sockets."""
    while settings.fleet_name or settings.fleet_members:
        for engine in engines.all:
            # The watch says it when a console fails.
            with contextlib.suppress(psycopg.Error, TimeoutError):
                if engine.console and (moved := await move_on(engine.console, engine.folder, settings.client_port)):
                    logger.info("moved cancel requests on", extra={"fields": {"process": engine.index, "count": moved}})
        await asyncio.sleep(settings.agent_tick_seconds)
    await asyncio.Event().wait()


async def move_on(console: AdminConsole, socket_folder: Path, port: int) -> int:
    """Have a PgBouncer send what waits in it; return how many requests did. Raises psycopg.Error and TimeoutError."""
    async with asyncio.timeout(ANSWER_SECONDS):
        stuck = [row for row in await console.show_peer_pools() if is_stuck(row)]
    if not stuck:
        return 0
    for row in stuck:
        for _ in range(min(row.cl_waiting_cancel_req, MOST_AT_ONCE)):
            await _nudge(socket_folder / f".s.PGSQL.{port}", row.peer_id)
            await asyncio.sleep(CONNECTED_SECONDS)
    # Ours wait now in the place of the others: the next one to come must not wait behind them.
    async with asyncio.timeout(ANSWER_SECONDS):
        for client in await console.show_clients():
            if client.state == WAITING_STATE and client.remote_pid == os.getpid():
                with contextlib.suppress(CommandRefused):
                    await console.kill_client(client.id)
    return sum(row.cl_waiting_cancel_req for row in stuck)


def is_stuck(row: PeerPoolRow) -> bool:
    """Whether requests wait for a connection that nobody opens."""
    return row.cl_waiting_cancel_req > 0 and row.sv_login == 0


async def _nudge(socket_path: Path, peer_id: int) -> None:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(cancel_request(peer_id))
        writer.close()


def cancel_request(peer_id: int) -> bytes:
    """Return a cancel request that PgBouncer passes on to a peer, which finds no query of that key.

    Bytes 1 and 2 of the key are the peer's id, the last two bits how often it may be passed on: once.
    """
    key = bytearray(secrets.token_bytes(8))
    key[1:3] = struct.pack("<H", peer_id)
    key[7] = key[7] & 0b11111100 | 1
    return struct.pack("!II", 16, CANCEL_REQUEST) + key
