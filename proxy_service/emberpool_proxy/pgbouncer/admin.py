"""A typed client for PgBouncer's admin console, over its unix socket.

What a tick asks for must stay cheap with thousands of clients: SHOW POOLS, LISTS, STATS and DATABASES have a few rows,
SHOW CLIENTS and SERVERS one a connection. What the rows hold is rows'.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.rows import tuple_row

from emberpool_proxy.pgbouncer.agent_connection import AgentConnection
from emberpool_proxy.pgbouncer.config import ADMIN_DATABASE, AGENT_USER
from emberpool_proxy.pgbouncer.rows import (
    ClientRow,
    ConfigRow,
    DatabaseRow,
    MemoryRow,
    PeerPoolRow,
    PeerRow,
    PoolRow,
    ServerRow,
    StatsRow,
    row_maker,
)

CONNECT_SECONDS = 3
LENGTH_AND_END_BYTES = 5  # of a simple query
ANSWER_BYTES = 65_536

Row = TypeVar("Row")


class CommandRefused(psycopg.ProgrammingError):
    """PgBouncer understood but would not: no such database, an unknown setting, already paused. It serves on."""


@dataclass(frozen=True)
class ClientCount:
    """How many clients are connected (the console itself not counted) and how many of them wait for a server."""

    connected: int
    waiting: int


class _IntegerLoader(Loader):
    """PgBouncer's numerics are counts: an int is enough, and cheaper than a Decimal."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class AdminConsole:
    """One connection to the console, held open: PgBouncer 1.24 closes its socket as soon as it shuts down.

    Commands wait for one another. Bound each with asyncio.timeout(): a cancelled command costs its connection, and the
    next one opens another. Raises CommandRefused when PgBouncer answers with an error, and psycopg.OperationalError
    when the connection is gone or none can be opened.
    """

    def __init__(self, connect: Callable[[], Awaitable[AgentConnection]], connection: AgentConnection) -> None:
        self._connect = connect
        self._connection = connection
        self._was_cancelled = False
        # Commands of several tasks: the next one must not find the connection of one that is being cancelled.
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, socket_folder: str, port: int, password: str) -> AdminConsole:
        """Log in at the console of the PgBouncer whose socket is in `socket_folder`."""

        async def connect() -> AgentConnection:
            return await _open_connection(socket_folder, port, password)

        return cls(connect, await connect())

    @property
    def is_open(self) -> bool:
        """Whether a command can still be given: not after close() or PgBouncer's end."""
        return self._was_cancelled or not self._connection.closed

    # --- what is cheap enough for a tick

    async def show_version(self) -> str:
        """Return PgBouncer's version line: the cheapest proof that it answers."""
        return str((await self._run("SHOW VERSION"))[0][0])

    async def show_pools(self) -> list[PoolRow]:
        """Return the pools, the console's own among them."""
        return await self._show("POOLS", PoolRow)

    async def show_lists(self) -> dict[str, int]:
        """Return how many of each thing there are: `used_clients`, `login_clients`, `used_servers`, ..."""
        return {str(name): int(count) for name, count in await self._run("SHOW LISTS")}

    async def show_stats(self) -> list[StatsRow]:
        """Return totals and averages of each database, the console's own among them."""
        return await self._show("STATS", StatsRow)

    async def show_databases(self) -> list[DatabaseRow]:
        """Return the databases and whether they are paused, the console's own among them."""
        return await self._show("DATABASES", DatabaseRow)

    async def show_state(self) -> str:
        """Return `active`, `paused` (all of it; a paused database is show_databases') or `suspended`."""
        return next(str(name) for name, is_so in await self._run("SHOW STATE") if is_so == "yes")

    async def count_clients(self) -> ClientCount:
        """Count the clients of all pools but the console's own."""
        pools = [pool for pool in await self.show_pools() if not pool.is_console]
        return ClientCount(
            connected=sum(pool.client_connections for pool in pools),
            waiting=sum(pool.cl_waiting for pool in pools),
        )

    # --- what is not

    async def show_clients(self) -> list[ClientRow]:
        """Return one row per client: 5,000 of them take PgBouncer's thread and ours some 100 ms."""
        return await self._show("CLIENTS", ClientRow)

    async def show_servers(self) -> list[ServerRow]:
        """Return one row per server connection."""
        return await self._show("SERVERS", ServerRow)

    async def show_config(self) -> dict[str, ConfigRow]:
        """Return the settings in force by name. They hold paths and names, no password."""
        return {row.key: row for row in await self._show("CONFIG", ConfigRow)}

    async def show_peers(self) -> list[PeerRow]:
        """Return the peers, this process among them."""
        return await self._show("PEERS", PeerRow)

    async def show_peer_pools(self) -> list[PeerPoolRow]:
        """Return the peers that a cancel request was ever passed on to, and how many requests are under way."""
        return await self._show("PEER_POOLS", PeerPoolRow)

    async def show_memory(self) -> list[MemoryRow]:
        """Return what PgBouncer's caches take."""
        return await self._show("MEM", MemoryRow)

    # --- commands

    async def set(self, name: str, value: str) -> None:
        """Change a setting until the next RELOAD or restart. The value is quoted here; fractions of seconds work."""
        escaped = value.replace("'", "''")
        await self._run(f"SET {_name(name)} = '{escaped}'")

    async def reload(self, ini: str | None = None) -> None:
        """Read the files again: settings, databases, peers, users, certificates.

        With `ini` PgBouncer reads that one instead of the file that it started with, now and later.
        """
        if ini:
            await self.set("conffile", ini)
        await self._run("RELOAD")

    async def pause(self, database: str | None = None) -> None:
        """Let running transactions end, close the server connections, and let clients wait from now on.

        The pause is in force at once, also when this is cancelled; it returns when the last transaction has ended.
        Meanwhile this console takes other commands: the pause has a connection of its own. Bound it: PgBouncer never
        answers a PAUSE that was ended by a RESUME.
        """
        connection = await self._connect()
        async with AdminConsole(self._connect, connection) as other:
            await other._run(_with_database("PAUSE", database))

    async def resume(self, database: str | None = None) -> None:
        """End a pause. Raises CommandRefused when there is none."""
        await self._run(_with_database("RESUME", database))

    async def reconnect(self, database: str | None = None) -> None:
        """Replace every server connection as soon as its transaction has ended."""
        await self._run(_with_database("RECONNECT", database))

    async def kill_client(self, client_id: int) -> None:
        """Close one client by ClientRow.id, at once. Raises CommandRefused when it has gone."""
        await self._run(f"KILL_CLIENT {client_id:d}")

    async def shutdown_when_servers_are_free(self) -> None:
        """End PgBouncer once every running transaction has ended; clients are closed between transactions."""
        await self._run("SHUTDOWN WAIT_FOR_SERVERS")

    async def shutdown_when_clients_have_left(self) -> None:
        """Take no new connection from now on, and end PgBouncer once the last client has left by itself."""
        await self._run("SHUTDOWN WAIT_FOR_CLIENTS")

    def send(self, *commands: str) -> None:
        """Give commands in one packet, without waiting: nothing that a client does comes between them.

        For a console that is used for nothing else; the answers are dropped. Raises psycopg.OperationalError.
        """
        packet = b"".join(
            b"Q" + struct.pack("!I", len(command) + LENGTH_AND_END_BYTES) + command.encode() + b"\0"
            for command in commands
        )
        descriptor = self._connection.fileno()
        try:
            with suppress(BlockingIOError):
                while os.read(descriptor, ANSWER_BYTES):
                    pass
            os.write(descriptor, packet)
        except OSError as error:
            raise psycopg.OperationalError(f"PgBouncer's console is gone: {error.strerror}") from error

    async def close(self) -> None:
        """Close the connection; PgBouncer goes on."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _show(self, what: str, kind: type[Row]) -> list[Row]:
        columns: list[str] = []
        rows = await self._run(f"SHOW {what}", columns)
        make = row_maker(kind, columns)
        return [make(row) for row in rows]

    async def _run(self, command: str, columns: list[str] | None = None) -> Sequence[tuple[Any, ...]]:
        async with self._turn:
            if self._was_cancelled:
                await self._connection.close()
                self._connection = await self._connect()
                self._was_cancelled = False
            try:
                cursor = await self._connection.execute(command.encode())
                if cursor.description is None:
                    return []
                if columns is not None:
                    columns.extend(column.name for column in cursor.description)
                return await cursor.fetchall()
            except asyncio.CancelledError:
                self._was_cancelled = True
                raise
            except psycopg.Error as error:
                if self._connection.closed:
                    raise
                raise CommandRefused(f"PgBouncer refused {command}: {error}") from error


async def _open_connection(socket_folder: str, port: int, password: str) -> AgentConnection:
    connection = await AgentConnection.connect(
        host=socket_folder,
        port=port,
        user=AGENT_USER,
        password=password,
        dbname=ADMIN_DATABASE,
        autocommit=True,  # the console knows no transactions
        prepare_threshold=None,  # and only the simple protocol
        connect_timeout=CONNECT_SECONDS,
        gssencmode="disable",
        sslmode="disable",
        row_factory=tuple_row,
    )
    connection.adapters.register_loader("numeric", _IntegerLoader)
    return connection


def _with_database(command: str, database: str | None) -> str:
    return command if database is None else f"{command} {_name(database)}"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
