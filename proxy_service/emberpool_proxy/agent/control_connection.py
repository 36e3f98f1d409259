"""The agent's own connection to the database, which its locks live on: one question at a time, and its loss at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from emberpool_proxy.database_login import log_in
from emberpool_proxy.pgbouncer.agent_connection import AgentConnection
from emberpool_proxy.settings import ProxySettings

DEADLINE_SECONDS = 12.0  # of a question: then the database, or the way to it, is gone
KEEPALIVES_IDLE_SECONDS, KEEPALIVES_INTERVAL_SECONDS, KEEPALIVES_COUNT = 5, 2, 3
SERVER_SETTINGS = {
    "statement_timeout": "10s",  # below the deadline
    # Of a task that vanishes the database is to end the pool's connections first, then the locks they rely on: those
    # have shorter limits (session_state).
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "30000",
    "plan_cache_mode": "force_generic_plan",  # the one question that is asked for ever is planned once
    "enable_nestloop": "off",  # the planner expects few rows of pg_locks, where hundreds of tasks have thousands
    "search_path": "pg_catalog",
}
POSTGRES_14 = 140000

Rows = list[tuple[Any, ...]]


class ControlConnection:
    """One connection straight to `database`. `on_lost` is called once, unless `close` was called before."""

    def __init__(self, connection: AgentConnection, deadline_seconds: float, on_lost: Callable[[], None]) -> None:
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._on_lost = on_lost
        self._turn = asyncio.Lock()
        self._is_asking = False
        self._process_id = connection.info.backend_pid
        # A duplicate: psycopg watches its own while it waits, and closes it when a question is given up.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._watch()

    @classmethod
    async def open(
        cls,
        settings: ProxySettings,
        database: str,
        login: tuple[str, str],
        *,
        application_name: str,
        deadline_seconds: float,
        on_lost: Callable[[], None],
    ) -> ControlConnection:
        """Log in. Raises psycopg.OperationalError, and TimeoutError at the deadline."""
        async with asyncio.timeout(deadline_seconds):
            connection = await log_in(
                AgentConnection,
                settings,
                login,
                application_name=application_name,
                database=database,
                client_encoding="utf8",
                tcp_user_timeout=int(deadline_seconds * 1000),
                keepalives_idle=KEEPALIVES_IDLE_SECONDS,
                keepalives_interval=KEEPALIVES_INTERVAL_SECONDS,
                keepalives_count=KEEPALIVES_COUNT,
            )
        return cls(connection, deadline_seconds, on_lost)

    @property
    def is_open(self) -> bool:
        """Whether nothing has shown yet that it is gone."""
        return self._is_open

    @property
    def process_id(self) -> int:
        """The backend's, as it said at the login; a pooler in between says something else."""
        return self._process_id

    @property
    def descriptor(self) -> int:
        """The socket's, for who wants to keep it open."""
        return self._socket.fileno()

    def settings(self) -> sql.Composed:
        """Return the statements that make the session fit to hold locks for long."""
        version = self._connection.info.server_version
        given = {**SERVER_SETTINGS, **({"idle_session_timeout": "0"} if version >= POSTGRES_14 else {})}
        return sql.SQL("; ").join(
            sql.SQL("set {} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in given.items()
        )

    async def ask(self, question: sql.Composed) -> Rows:
        """Return the rows of the answer, which takes one round trip.

        Whatever fails ends the connection: after an error nobody knows which locks it holds. Raises psycopg.Error, as
        OperationalError when the connection is gone or the answer does not come within the deadline.
        """
        async with self._turn:
            if not self._is_open:
                raise psycopg.OperationalError("the control connection is closed")
            self._unwatch()  # the answer is psycopg's to read
            self._is_asking = True
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    cursor = await self._connection.execute(question)
                    rows = await cursor.fetchall() if cursor.description else []
            except BaseException as error:
                self._is_asking = False
                self._connection.pgconn.finish()
                self.lose()
                if isinstance(error, TimeoutError):
                    words = f"the database did not answer within {self._deadline_seconds:g} s"
                    raise psycopg.OperationalError(words) from error
                raise
            self._is_asking = False
            if self._is_open:
                self._watch()
            return rows

    def close(self) -> None:
        """End the session, also when its socket is held elsewhere, too."""
        if not self._is_open:
            return
        self._is_open = False
        self._unwatch()
        if not self._is_asking:  # psycopg waits for an answer on libpq's socket, and closes it when that has ended
            self._connection.pgconn.finish()
        # Whoever holds a duplicate must not keep the session alive when libpq's goodbye does not get through.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def lose(self) -> None:
        """Close it as lost."""
        if self._is_open:
            self.close()
            self._on_lost()

    def _watch(self) -> None:
        self._loop.add_reader(self._socket, self._read_unasked)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._socket)

    def _read_unasked(self) -> None:
        # The database says something unasked when it ends the session. Its last words come before the end of the
        # stream: this is called again for that.
        try:
            self._connection.pgconn.consume_input()
        except psycopg.Error:
            self.lose()
