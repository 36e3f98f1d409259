"""Our proxy and, in front of the same database, a bare PgBouncer on a copy of the very files that ours renders."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.proxy.clients import Target

from emberpool_local.host.children import start_child
from emberpool_local.host.ports import LOOPBACK, free_port, is_free
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_proxy.pgbouncer.config import LIMIT, POOL_SIZE

START_SECONDS = 10.0
SERVER_CONNECTIONS = 20
MIB = 2**20


@dataclass(frozen=True)
class Pool:
    """One of the two: where clients connect and which processes it is."""

    name: str
    target: Target
    pgbouncer: int  # process ids
    agent: int = 0
    supervisor: int = 0

    @property
    def processes(self) -> list[int]:
        return [pid for pid in (self.pgbouncer, self.agent, self.supervisor) if pid]

    def environment(self, tls: bool) -> dict[str, str]:
        """Return the variables that libpq's programs connect with."""
        return {
            "PATH": os.environ["PATH"],
            "PGHOST": self.target.host,
            "PGPORT": str(self.target.port),
            "PGUSER": self.target.user,
            "PGPASSWORD": self.target.password,
            "PGDATABASE": self.target.database,
            "PGSSLMODE": "require" if tls else "disable",
        }


@dataclass(frozen=True)
class Database:
    """The database that both pools serve."""

    postgres: EmbeddedPostgres
    access: DatabaseAccess = field(repr=False)


@contextmanager
def running_database() -> Iterator[Database]:
    """Run a PostgreSQL with a role and a database for the pools."""
    with EmbeddedPostgres(max_connections=100) as postgres:
        access = DatabaseAccess(postgres.host, postgres.port, "bench", "pool", "password-of-the-pool")
        postgres.create_role_and_database(access.user, access.password, access.name)
        yield Database(postgres, access)


@contextmanager
def running_proxy(
    database: Database, program: PgbouncerProgram, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Pool, LocalProxy]]:
    """Run our proxy as deployed, on a port of its own."""
    with LocalProxy(
        database.access, max_server_connections=SERVER_CONNECTIONS, settings=settings, pgbouncer=program
    ) as proxy:
        supervisor = proxy.child.pid
        children = {pid: _command(pid) for pid in _children(supervisor)}
        agent = next(pid for pid, command in children.items() if "agent" in command)
        pgbouncer = next(pid for pid, command in children.items() if any("pgbouncer.ini" in word for word in command))
        target = Target(LOOPBACK, proxy.port, proxy.client_user, database.access.name, proxy.client_password)
        yield Pool("emberpool", target, pgbouncer, agent, supervisor), proxy


@contextmanager
def running_bare_copy(ours: Pool, proxy: LocalProxy, program: PgbouncerProgram) -> Iterator[Pool]:
    """Run PgBouncer alone on a copy of the proxy's files, moved to another folder and port."""
    with TempFolder("bare") as temporary:
        folder, source = temporary / "run", proxy.run_folder / "0"
        folder.mkdir(mode=0o700)
        port = free_port()
        for path in source.iterdir():
            if path.is_file():
                shutil.copy(path, folder / path.name)
        ini = folder / "pgbouncer.ini"
        text = ini.read_text().replace(str(source), str(folder))
        text = text.replace(f"listen_port = {proxy.port}", f"listen_port = {port}")
        # What PgBouncer starts with is one server connection: the agent gives it the others.
        text, count = re.subn(rf"^({POOL_SIZE}|{LIMIT}) = .*$", rf"\1 = {SERVER_CONNECTIONS}", text, flags=re.MULTILINE)
        if count != 2:
            raise RuntimeError(f"{ini} has {count} limits of server connections, not 2")
        ini.write_text(text)
        copied = folder / "pgbouncer"  # the proxy's own may be out of reach for the user that it runs as
        shutil.copy(program.path, copied)
        for path in (folder, *folder.iterdir()):
            give_to(server_user(), path)
        child = start_child([copied, ini], log_path=temporary / "pgbouncer.log", as_user=server_user())
        try:
            wait_until("the bare PgBouncer did not start", lambda: not is_free(port), START_SECONDS)
            target = Target(ours.target.host, port, ours.target.user, ours.target.database, ours.target.password)
            yield Pool("bare PgBouncer", target, child.pid)
        finally:
            child.stop(signal.SIGQUIT)


def resident_mib(pids: list[int]) -> float:
    """Return the resident memory of these processes together; what they share counts for each."""
    return sum(_status_kib(pid, "VmRSS") for pid in pids) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def child_pid(pid: int, word: str) -> int:
    """Return the child of a process whose command line has this word."""
    return next(child for child in _children(pid) if word in _command(child))


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
