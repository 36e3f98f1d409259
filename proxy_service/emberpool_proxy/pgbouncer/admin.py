"""A client for PgBouncer's admin console, over its unix socket."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import DictRow, dict_row

from emberpool_proxy.pgbouncer.config import ADMIN_DATABASE, AGENT_USER


@dataclass(frozen=True)
class ClientCount:
    """How many clients are connected (the console itself not counted) and how many of them wait for a server."""

    connected: int
    waiting: int


class AdminConsole:
    """One connection to the console, held open: PgBouncer 1.24 closes its socket as soon as it shuts down.

    Raises psycopg.OperationalError when PgBouncer does not answer.
    """

    def __init__(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, socket_folder: str, port: int, password: str) -> AdminConsole:
        """Log in at the console of the PgBouncer whose socket is in `socket_folder`."""
        connection = await psycopg.AsyncConnection.connect(
            host=socket_folder,
            port=port,
            user=AGENT_USER,
            password=password,
            dbname=ADMIN_DATABASE,
            autocommit=True,  # the console knows no transactions
            prepare_threshold=None,  # and only the simple protocol
            connect_timeout=3,
            gssencmode="disable",
            sslmode="disable",
            row_factory=dict_row,
        )
        return cls(connection)

    async def show_version(self) -> str:
        """Return PgBouncer's version line: the cheapest proof that it answers."""
        return str((await self._rows("SHOW VERSION"))[0]["version"])

    async def count_clients(self) -> ClientCount:
        """Count the clients of all pools but the console's own."""
        pools = [row for row in await self._rows("SHOW POOLS") if row["database"] != ADMIN_DATABASE]
        return ClientCount(
            connected=sum(row["cl_active"] + row["cl_waiting"] for row in pools),
            waiting=sum(row["cl_waiting"] for row in pools),
        )

    async def shutdown_when_servers_are_free(self) -> None:
        """End PgBouncer once every running transaction has ended; clients are closed between transactions."""
        await self._connection.execute("SHUTDOWN WAIT_FOR_SERVERS")

    async def close(self) -> None:
        """Close the connection; PgBouncer goes on."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _rows(self, command: str) -> list[dict[str, Any]]:
        cursor = await self._connection.execute(command.encode())
        return await cursor.fetchall()
