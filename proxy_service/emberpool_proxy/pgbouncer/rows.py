"""The rows of PgBouncer's admin console, by PgBouncer's own column names.

A column that a newer version adds is left out, one that an older version lacks (or that is null) has its default, so
that an upgrade of PgBouncer breaks no reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

ADMIN_DATABASE = "pgbouncer"  # its own pool and statistics are in every answer
MICROSECONDS = 1_000_000

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PoolRow:
    """SHOW POOLS: the pool of one database and user. `cl_active` holds the idle clients, too."""

    database: str = ""
    user: str = ""
    cl_active: int = 0
    cl_waiting: int = 0
    cl_active_cancel_req: int = 0
    cl_waiting_cancel_req: int = 0
    sv_active: int = 0
    sv_active_cancel: int = 0
    sv_being_canceled: int = 0
    sv_idle: int = 0
    sv_used: int = 0
    sv_tested: int = 0
    sv_login: int = 0
    maxwait: int = 0
    maxwait_us: int = 0
    pool_mode: str = ""

    @property
    def is_console(self) -> bool:
        """Whether it is the admin console's own."""
        return self.database == ADMIN_DATABASE

    @property
    def client_connections(self) -> int:
        """Clients that are logged in."""
        return self.cl_active + self.cl_waiting

    @property
    def server_connections(self) -> int:
        """Connections to the database that are open or being opened: what the budget counts."""
        return (
            self.sv_active
            + self.sv_active_cancel
            + self.sv_being_canceled
            + self.sv_idle
            + self.sv_used
            + self.sv_tested
            + self.sv_login
        )

    @property
    def max_wait_seconds(self) -> float:
        """How long the client at the head of the line has waited."""
        return self.maxwait + self.maxwait_us / MICROSECONDS


@dataclass(frozen=True, slots=True)
class SocketRow:
    """What SHOW CLIENTS and SHOW SERVERS have in common; `id` is what KILL_CLIENT takes."""

    type: str = ""
    user: str = ""
    database: str = ""
    state: str = ""
    addr: str = ""
    port: int = 0
    local_addr: str = ""
    local_port: int = 0
    connect_time: str = ""  # "2026-01-31 12:00:00 UTC"
    request_time: str = ""
    wait: int = 0
    wait_us: int = 0
    close_needed: int = 0
    ptr: str = ""
    link: str = ""  # the other side's ptr, while they belong together
    remote_pid: int = 0
    tls: str = ""
    application_name: str = ""
    prepared_statements: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class ClientRow(SocketRow):
    """SHOW CLIENTS: one client connection. The console's own are among them."""


@dataclass(frozen=True, slots=True)
class ServerRow(SocketRow):
    """SHOW SERVERS: one connection to the database; `remote_pid` is its backend's process id."""


@dataclass(frozen=True, slots=True)
class StatsRow:
    """SHOW STATS: totals of one database since PgBouncer's start, and averages of the last `stats_period`.

    Times are in microseconds. The averages of counts are per second, those of times per transaction, query or wait.
    """

    database: str = ""
    total_server_assignment_count: int = 0
    total_xact_count: int = 0
    total_query_count: int = 0
    total_received: int = 0
    total_sent: int = 0
    total_xact_time: int = 0
    total_query_time: int = 0
    total_wait_time: int = 0
    total_client_parse_count: int = 0
    total_server_parse_count: int = 0
    total_bind_count: int = 0
    avg_server_assignment_count: int = 0
    avg_xact_count: int = 0
    avg_query_count: int = 0
    avg_recv: int = 0
    avg_sent: int = 0
    avg_xact_time: int = 0
    avg_query_time: int = 0
    avg_wait_time: int = 0
    avg_client_parse_count: int = 0
    avg_server_parse_count: int = 0
    avg_bind_count: int = 0

    @property
    def is_console(self) -> bool:
        """Whether it is the admin console's own."""
        return self.database == ADMIN_DATABASE


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    """SHOW DATABASES: one entry of [databases], its address resolved and its state."""

    name: str = ""
    host: str = ""
    port: int = 0
    database: str = ""
    force_user: str = ""
    pool_size: int = 0
    min_pool_size: int = 0
    reserve_pool_size: int = 0
    server_lifetime: int = 0
    pool_mode: str = ""
    load_balance_hosts: str = ""
    max_connections: int = 0
    current_connections: int = 0
    max_client_connections: int = 0
    current_client_connections: int = 0
    paused: int = 0
    disabled: int = 0

    @property
    def is_console(self) -> bool:
        """Whether it is the admin console's own."""
        return self.name == ADMIN_DATABASE


@dataclass(frozen=True, slots=True)
class ConfigRow:
    """SHOW CONFIG: one setting; `changeable` is "yes" when SET or RELOAD can change it."""

    key: str = ""
    value: str = ""
    default: str = ""
    changeable: str = ""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """SHOW PEERS: one entry of [peers]."""

    peer_id: int = 0
    host: str = ""
    port: int = 0
    pool_size: int = 0


@dataclass(frozen=True, slots=True)
class PeerPoolRow:
    """SHOW PEER_POOLS: the cancel requests for one peer."""

    peer_id: int = 0
    cl_active_cancel_req: int = 0
    cl_waiting_cancel_req: int = 0
    sv_active_cancel: int = 0
    sv_login: int = 0


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """SHOW MEM: one of PgBouncer's caches, `size` bytes an item."""

    name: str = ""
    size: int = 0
    used: int = 0
    free: int = 0
    memtotal: int = 0


def row_maker(kind: type[Row], columns: Sequence[str]) -> Callable[[Sequence[Any]], Row]:
    """Return a function from a row's values, in the order of `columns`, to a `kind` (a dataclass of this module)."""
    known = [
        (columns.index(field.name) if field.name in columns else None, field.default)
        for field in fields(kind)  # type: ignore[arg-type]  # (a TypeVar cannot be bound to "any dataclass")
    ]

    def make(values: Sequence[Any]) -> Row:
        given = (default if at is None else values[at] for at, default in known)
        return kind(
            *(default if value is None else value for value, (_, default) in zip(given, known, strict=True)),
        )

    return make
