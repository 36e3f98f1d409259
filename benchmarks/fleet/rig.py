"""A PostgreSQL and a fleet of our proxies in front of it that share one budget, and what the database says of them."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.proxy.pair import Database, cpu_seconds

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.program import PostgresProgram, find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_proxy.settings import AGENT_CONNECTIONS

FLOOR = 2
BUDGET_NAME = "bench"
POLL_SECONDS = 0.002
QUIET_BOUND_SECONDS = 60.0

HELD = """
    select count(*) from pg_locks
    where locktype = 'advisory' and classid = %s::bigint::oid and objsubid = 2 and mode = 'ExclusiveLock' and granted
"""
POOL_CONNECTIONS = """
    select count(*) from pg_stat_activity
    where usename = %s and backend_type = 'client backend' and application_name not like 'emberpool-%%'
"""
CONTROL_BACKENDS = "select pid from pg_stat_activity where usename = %s and application_name like 'emberpool-agent%%'"
ALL_CONNECTIONS = "select count(*) from pg_stat_activity where usename = %s"


@dataclass(frozen=True)
class FleetTerms:
    """How many tasks share how many slots."""

    tasks: int
    slots: int
    floor: int = FLOOR

    @property
    def budget(self) -> int:
        return self.tasks * (self.floor + AGENT_CONNECTIONS) + self.slots

    def settings(self, **others: str) -> dict[str, str]:
        """Return the settings of each task."""
        return {
            "max_server_connections": str(self.budget),
            "most_tasks_alive": str(self.tasks),
            "floor_connections": str(self.floor),
            "budget_name": BUDGET_NAME,
            "client_tls_mode": "disable",
            **others,
        }


@dataclass
class Watch:
    """A superuser's connection that counts the fleet's locks and backends."""

    connection: psycopg.Connection[tuple[Any, ...]]
    role: str

    def held(self) -> int:
        """Return how many slots are held."""
        return self._count(HELD, slot_class(BUDGET_NAME))

    def pool_connections(self) -> int:
        """Return how many server connections the pools have."""
        return self._count(POOL_CONNECTIONS, self.role)

    def control_backends(self) -> list[int]:
        """Return the process ids of the control connections' backends."""
        return [pid for (pid,) in self.connection.execute(CONTROL_BACKENDS, [self.role])]

    def wait_until_free(self) -> None:
        """Return when no slot is held."""
        self._wait(lambda: self.held() == 0, "slots are still held")

    def wait_until_asleep(self) -> None:
        """Return when the fleet has no connection at all."""
        self._wait(lambda: self._count(ALL_CONNECTIONS, self.role) == 0, "connections are still open")

    def _count(self, query: str, parameter: object) -> int:
        row = self.connection.execute(query, [parameter], prepare=True).fetchone()
        assert row
        return int(row[0])

    def _wait(self, fact: Any, failure: str) -> None:
        end = time.monotonic() + QUIET_BOUND_SECONDS
        while not fact():
            if time.monotonic() > end:
                raise RuntimeError(f"{failure} {QUIET_BOUND_SECONDS:g} s after the load")
            time.sleep(0.05)


@dataclass
class RunningTask:
    """One task, and the processes that it is."""

    proxy: LocalProxy
    supervisor: int
    agent: int
    pgbouncer: int

    def conninfo(self) -> str:
        """Return the connection string of a function; without TLS, as its cost is not the fleet's."""
        return psycopg.conninfo.make_conninfo(self.proxy.conninfo(), sslmode="disable", sslrootcert="")

    def environment(self) -> dict[str, str]:
        """Return the variables that libpq's programs connect with."""
        return {
            "PGHOST": self.proxy.host,
            "PGPORT": str(self.proxy.port),
            "PGUSER": self.proxy.client_user,
            "PGPASSWORD": self.proxy.client_password,
            "PGDATABASE": self.proxy.database.name,
            "PGSSLMODE": "disable",
        }

    def agent_cpu_seconds(self) -> float:
        """Return what the agent has used."""
        return cpu_seconds(self.agent)


@dataclass
class RunningFleet:
    """The tasks of one budget."""

    terms: FleetTerms | None
    tasks: list[RunningTask] = field(default_factory=list)


@contextmanager
def running_database(max_connections: int) -> Iterator[Database]:
    """Run a PostgreSQL, with pg_stat_statements where it is there."""
    program = find_postgres()
    settings = {"shared_preload_libraries": "pg_stat_statements"} if has_pg_stat_statements(program) else {}
    with EmbeddedPostgres(max_connections=max_connections, settings=settings, program=program) as postgres:
        access = DatabaseAccess(postgres.host, postgres.port, "bench", "pool", "password-of-the-pool")
        postgres.create_role_and_database(access.user, access.password, access.name)
        if settings:
            with psycopg.connect(postgres.conninfo(database=access.name), autocommit=True) as admin:
                admin.execute("create extension pg_stat_statements")
        yield Database(postgres, access)


def has_pg_stat_statements(program: PostgresProgram) -> bool:
    """Whether this PostgreSQL comes with the extension."""
    return bool(list(program.bin_folder.parent.glob("lib/**/pg_stat_statements.*")))


@contextmanager
def watching(database: Database) -> Iterator[Watch]:
    """Open the connection that counts."""
    conninfo = database.postgres.conninfo(database=database.access.name)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield Watch(connection, database.access.user)


@contextmanager
def running_fleet(
    database: Database, program: PgbouncerProgram, terms: FleetTerms, settings: Mapping[str, str] | None = None
) -> Iterator[RunningFleet]:
    """Run as many tasks as share the budget."""
    with ExitStack() as stack:
        fleet = RunningFleet(terms)
        for _ in range(terms.tasks):
            given = terms.settings(**(settings or {}))
            fleet.tasks.append(stack.enter_context(_running_task(database, program, given)))
        yield fleet


@contextmanager
def running_alone(
    database: Database, program: PgbouncerProgram, connections: list[int], settings: Mapping[str, str] | None = None
) -> Iterator[RunningFleet]:
    """Run tasks that share nothing, one for each number of connections."""
    with ExitStack() as stack:
        fleet = RunningFleet(None)
        for count in connections:
            given = {"max_server_connections": str(count), "client_tls_mode": "disable", **(settings or {})}
            fleet.tasks.append(stack.enter_context(_running_task(database, program, given)))
        yield fleet


@contextmanager
def _running_task(database: Database, program: PgbouncerProgram, settings: Mapping[str, str]) -> Iterator[RunningTask]:
    with LocalProxy(database.access, settings=settings, pgbouncer=program) as proxy:
        supervisor = proxy.child.pid
        children = {pid: _command(pid) for pid in _children(supervisor)}
        agent = next(pid for pid, command in children.items() if "agent" in command)
        pgbouncer = next(pid for pid, command in children.items() if any("pgbouncer.ini" in word for word in command))
        yield RunningTask(proxy, supervisor, agent, pgbouncer)


def pgbench_of(database: Database) -> str:
    """Return the pgbench program. Raises RuntimeError when there is none."""
    own = database.postgres.program.bin_folder / "pgbench"
    found = str(own) if own.exists() else shutil.which("pgbench")
    if found is None:
        raise RuntimeError("pgbench was not found; it comes with PostgreSQL's server packages")
    return found


def slot_class(budget_name: str) -> int:
    """Return the first key of the slots' locks, as documented."""
    return int.from_bytes(hashlib.sha256(f"emberpool:{budget_name}".encode()).digest()[:4], "big") >> 1


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
