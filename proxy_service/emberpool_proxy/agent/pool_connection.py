"""The agent as a client of its own pool: how it asks the database something over the pool's connections."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.rows import TupleRow, tuple_row

from emberpool_proxy.pgbouncer.config import AGENT_USER

PROBE_NAME = "emberpool-probe"  # as pg_stat_activity shows the agent's own questions
CONNECT_SECONDS = 10
WAKE_SECONDS = 1.0  # psycopg looks for interrupts this often while it waits

Result = TypeVar("Result")


class PoolConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection that is closed when what runs on it is cancelled.

    psycopg would send a cancel request and wait for seconds; PgBouncer has nothing to cancel for a client in line.
    """

    async def wait(self, gen: PQGen[Result], interval: float = WAKE_SECONDS, timeout: float | None = None) -> Result:  # noqa: ASYNC109 (psycopg's signature)
        """Wait as psycopg does, but close when cancelled."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                self.pgconn.finish()
            raise

    @classmethod
    async def open(cls, socket_folder: Path, port: int, password: str, database: str) -> PoolConnection:
        """Log in at one of the pools of the PgBouncer whose socket is in `socket_folder`.

        While the pool is paused its first query waits in line, as a client's does; while the pool has never reached the
        database, the login does. Raises psycopg.OperationalError.
        """
        return await cls.connect(
            host=str(socket_folder),
            port=port,
            user=AGENT_USER,
            password=password,
            dbname=database,
            autocommit=True,
            prepare_threshold=None,
            application_name=PROBE_NAME,
            connect_timeout=CONNECT_SECONDS,
            gssencmode="disable",
            sslmode="disable",
            row_factory=tuple_row,
        )
