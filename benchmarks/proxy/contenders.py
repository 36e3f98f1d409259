"""The ways to the database that are compared, each with TLS and SCRAM on both of its sides and the same pool size.

The bare PgBouncer has Debian's pgbouncer.ini with nothing more than it must have: where the database is, who may log
in, TLS, and transactions as what is pooled, without which a thousand clients cannot share connections at all.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxy.clients import Target
from benchmarks.proxy.processes import cpu_seconds_of
from benchmarks.proxy.secured_database import SecuredDatabase, write_for_servers

from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import LOOPBACK, free_port, is_free
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.proxy import LocalProxy
from emberpool_proxy.pgbouncer.scram import STRETCHED_ITERATIONS, verifier

POOL_SIZE = 20
DIRECT, BARE, OURS = "direct", "bare PgBouncer", "emberpool"
CLIENT, CLIENT_PASSWORD = "function", "password-of-the-function-which-is-43-characters"
START_SECONDS = 10.0
DATABASE_CAS = "verify-full"


@dataclass(frozen=True)
class Contender:
    """One way to the database: where clients connect, and the process that it is with all that it started."""

    name: str
    target: Target
    root: int = 0  # 0: there is nothing in the way

    def cpu_seconds(self) -> float:
        """Return the processor time of what is in the way."""
        return cpu_seconds_of(self.root) if self.root else 0.0

    def environment(self) -> dict[str, str]:
        """Return the variables that libpq's programs connect with."""
        return {
            "PGHOST": self.target.host,
            "PGPORT": str(self.target.port),
            "PGUSER": self.target.user,
            "PGPASSWORD": self.target.password,
            "PGDATABASE": self.target.database,
            "PGSSLMODE": "require",
        }


def direct(database: SecuredDatabase) -> Contender:
    """Return the way without a pool: each client is a backend."""
    access = database.access
    return Contender(DIRECT, Target(access.host, access.port, access.user, access.name, access.password))


@contextmanager
def running_emberpool(database: SecuredDatabase, program: PgbouncerProgram) -> Iterator[Contender]:
    """Run one task as deployed."""
    settings = {"server_tls_mode": DATABASE_CAS, "server_tls_ca_file": str(database.authority_path)}
    with LocalProxy(database.access, max_server_connections=POOL_SIZE, settings=settings, pgbouncer=program) as proxy:
        target = Target(proxy.host, proxy.port, proxy.client_user, database.access.name, proxy.client_password)
        yield Contender(OURS, target, proxy.child.pid)


@dataclass
class BarePgbouncer:
    """A PgBouncer whose process can be started again: with its files, which stay."""

    name: str
    folder: Path
    program: Path
    port: int
    database: str
    child: Child

    def contender(self) -> Contender:
        """Return the way over the process that runs now."""
        return Contender(self.name, Target(LOOPBACK, self.port, CLIENT, self.database, CLIENT_PASSWORD), self.child.pid)

    def start(self) -> None:
        """Start the process anew, as soon as the one before has ended: it has the port until then."""
        self.child.process.wait(START_SECONDS)
        self.child = _started(self.program, self.folder)


@contextmanager
def running_bare_pgbouncer(
    database: SecuredDatabase,
    program: PgbouncerProgram,
    settings: Mapping[str, str] | None = None,
    name: str = BARE,
) -> Iterator[BarePgbouncer]:
    """Run a PgBouncer with its defaults; `settings` are further lines of its ini."""
    with TempFolder("bare") as temporary:
        folder = temporary / "run"
        folder.mkdir(mode=0o700)
        give_to(server_user(), folder)
        port = free_port()
        certificate, key = database.authority.issue((), database.authority.not_before)
        given = {**_debian_defaults(folder, port), **_needed(database, folder), **(settings or {})}
        access = database.access
        entry = f"{access.name} = host={access.host} port={access.port} dbname={access.name} user={access.user}"
        # As a user would write it who knows PgBouncer: with the client's password in plain text a login costs 3.9 ms.
        client = verifier(CLIENT_PASSWORD, iterations=STRETCHED_ITERATIONS)
        for file, text in {
            "server.crt": certificate,
            "server.key": key,
            "userlist.txt": f'"{access.user}" "{access.password}"\n"{CLIENT}" "{client}"\n',
            "pgbouncer.ini": f"[databases]\n{entry}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in given.items()),
        }.items():
            write_for_servers(folder / file, text)
        running = BarePgbouncer(name, folder, program.path, port, access.name, _started(program.path, folder))
        try:
            wait_until(f"{name} did not start", lambda: not is_free(port), START_SECONDS)
            yield running
        finally:
            running.child.stop(signal.SIGQUIT)


def _started(program: Path, folder: Path) -> Child:
    return start_child([program, folder / "pgbouncer.ini"], log_path=folder.parent / "out.log", as_user=server_user())


def _debian_defaults(folder: Path, port: int) -> dict[str, str]:
    """Return what Debian's pgbouncer.ini says outside of comments, the folders and the port made ours."""
    return {
        "logfile": str(folder / "pgbouncer.log"),
        "pidfile": str(folder / "pgbouncer.pid"),
        "listen_addr": LOOPBACK,
        "listen_port": str(port),
        "unix_socket_dir": str(folder),
        "auth_type": "scram-sha-256",  # md5 there: as the database's
        "auth_file": str(folder / "userlist.txt"),
    }


def _needed(database: SecuredDatabase, folder: Path) -> dict[str, str]:
    return {
        "pool_mode": "transaction",
        "default_pool_size": str(POOL_SIZE),  # as it is by default
        "client_tls_sslmode": "require",
        "client_tls_cert_file": str(folder / "server.crt"),
        "client_tls_key_file": str(folder / "server.key"),
        "server_tls_sslmode": DATABASE_CAS,
        "server_tls_ca_file": str(database.authority_path),
    }
