"""What one PgBouncer says of itself at a tick: the few rows that tell how its pool does.

Never SHOW CLIENTS or SHOW SERVERS: with 5,000 clients those would cost PgBouncer's one thread more than the clients do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.rows import DatabaseRow, PoolRow, StatsRow


@dataclass(frozen=True, slots=True)
class Reading:
    """One PgBouncer at one moment, its console's own rows left out."""

    index: int
    pools: tuple[PoolRow, ...]
    stats: tuple[StatsRow, ...]
    databases: tuple[DatabaseRow, ...]
    clients_logging_in: int = 0

    @property
    def client_connections(self) -> int:
        """Clients that are logged in."""
        return sum(pool.client_connections for pool in self.pools)

    @property
    def clients_active(self) -> int:
        """Clients that have a server connection now."""
        # PgBouncer counts idle clients as active, but an active server always has its client.
        return sum(min(pool.sv_active, pool.cl_active) for pool in self.pools)

    @property
    def clients_idle(self) -> int:
        """Clients that are connected and want nothing."""
        return sum(pool.cl_active for pool in self.pools) - self.clients_active

    @property
    def clients_waiting(self) -> int:
        """Clients that wait for a server connection."""
        return sum(pool.cl_waiting for pool in self.pools)

    @property
    def server_connections(self) -> int:
        """Connections to the database, those being opened included."""
        return sum(pool.server_connections for pool in self.pools)

    @property
    def max_wait_seconds(self) -> float:
        """How long the client that waits longest has waited."""
        return max((pool.max_wait_seconds for pool in self.pools), default=0.0)

    @property
    def is_paused(self) -> bool:
        """Whether one of its pools sleeps: see credentials.gate."""
        return any(database.paused for database in self.databases)


async def read(index: int, console: AdminConsole) -> Reading:
    """Ask PgBouncer `index` how its pool does. Raises psycopg.Error."""
    pools = await console.show_pools()
    stats = await console.show_stats()
    databases = await console.show_databases()
    lists = await console.show_lists()
    return Reading(
        index,
        tuple(pool for pool in pools if not pool.is_console),
        tuple(row for row in stats if not row.is_console),
        tuple(database for database in databases if not database.is_console),
        lists.get("login_clients", 0),
    )


def longest_wait(readings: Iterable[Reading]) -> float:
    """Return the longest wait over all processes, in seconds."""
    return max((reading.max_wait_seconds for reading in readings), default=0.0)
