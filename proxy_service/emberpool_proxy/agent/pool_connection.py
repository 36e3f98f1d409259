"""The agent as a client of its own pool: how it asks the database something over the pool's connections."""

from __future__ import annotations

from pathlib import Path

from psycopg.rows import tuple_row

from emberpool_proxy.pgbouncer.agent_connection import AgentConnection
from emberpool_proxy.pgbouncer.config import AGENT_USER

# As pg_stat_activity shows the agent's own questions: by a login of its own, and over a connection of the pool. The
# budget does not count what begins with "emberpool-" as the pool's.
PROBE_NAME = "emberpool-probe"
POOL_PROBE_NAME = "emberpool pool probe"
CONNECT_SECONDS = 10


class PoolConnection(AgentConnection):
    """A client's connection to one of the pools, the agent's own."""

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
            application_name=POOL_PROBE_NAME,
            connect_timeout=CONNECT_SECONDS,
            gssencmode="disable",
            sslmode="disable",
            row_factory=tuple_row,
        )
