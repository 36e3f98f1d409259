"""What a burst needs of a local stack: limits that fit, tables, and the database to watch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg

from emberpool_local.burst.fire import BurstInvalid, WatchedDatabase
from emberpool_local.burst.machine import this_machine
from emberpool_local.burst.results import DemoResult, WayResult
from emberpool_local.errors import LocalStackError
from emberpool_local.pgbouncer.program import find_pgbouncer
from emberpool_local.postgres.server import RESERVED_CONNECTIONS
from emberpool_local.stack import LocalStack


class SqlFileInvalid(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The SQL file cannot be read, or PostgreSQL refuses it."""


def check_limits(max_connections: int, max_server_connections: int) -> None:
    """Raise BurstInvalid unless the proxy's connections fit into those that the database has for everybody."""
    if not 1 <= max_server_connections <= max_connections - RESERVED_CONNECTIONS:
        raise BurstInvalid(
            f"{max_server_connections} server connections of the proxy do not fit into max_connections = "
            f"{max_connections}, of which {RESERVED_CONNECTIONS} are reserved",
            f"give --max-connections of at least {max(max_server_connections, 1) + RESERVED_CONNECTIONS}",
        )


def watched_database(stack: LocalStack) -> WatchedDatabase:
    """Return the stack's database as a burst watches it."""
    return WatchedDatabase(stack.superuser_conninfo, stack.postgres.log_path, stack.postgres.max_connections)


def put_together(stack: LocalStack, ways: list[WayResult], command: str) -> DemoResult:
    """Put the ways together with the machine and the versions that they were measured on."""
    with psycopg.connect(stack.superuser_conninfo) as connection:
        # "15.18 (Debian 15.18-0+deb12u1)" on some systems
        postgresql = (connection.info.parameter_status("server_version") or "unknown").partition(" ")[0]
    pgbouncer = ".".join(str(number) for number in find_pgbouncer().version)
    return DemoResult(
        ways=ways,
        machine=this_machine(postgresql, pgbouncer),
        command=command,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        max_connections=stack.postgres.max_connections,
        max_server_connections=stack.max_server_connections,
    )


def run_sql_file(conninfo: str, path: Path) -> None:
    """Run an SQL file in one transaction, as the user of `conninfo`.

    Raises SqlFileInvalid when it cannot be read or PostgreSQL refuses it.
    """
    try:
        # Bytes: psycopg takes no text that is not a literal of the program as a query.
        with psycopg.connect(conninfo) as connection:
            connection.execute(path.read_bytes())
    except OSError as error:
        raise SqlFileInvalid(f"{path} cannot be read: {error.strerror}", "name an SQL file") from error
    except psycopg.Error as error:
        raise SqlFileInvalid(f"{path}: {str(error).strip()}", "mend the SQL file") from error
