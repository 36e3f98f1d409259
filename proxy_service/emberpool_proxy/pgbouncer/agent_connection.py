"""The agent's connections to PgBouncer, to its console and to its pools: cancelling what runs on one closes it."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen

WAKE_SECONDS = 1.0  # psycopg looks for interrupts this often while it waits

Result = TypeVar("Result")


class AgentConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that is closed when a command on it is cancelled.

    psycopg would send a cancel request and wait up to 10 s for the answer, which a PgBouncer that hangs never gives;
    and it has nothing to cancel for a client in line. Worse, PgBouncer takes a cancel request for a PAUSE as RESUME.
    """

    async def wait(self, gen: PQGen[Result], interval: float = WAKE_SECONDS, timeout: float | None = None) -> Result:  # noqa: ASYNC109 (psycopg's signature)
        """Wait as psycopg does, but close when cancelled."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                self.pgconn.finish()
            raise
