"""A real PgBouncer without our agent, for tests of the parts that speak to it or read its log."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import free_port
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.config import AGENT_USER
from emberpool_proxy.pgbouncer.scram import verifier

AGENT_PASSWORD = "agent-password-of-43-characters-or-more-0123456789"
CLIENT, CLIENT_PASSWORD = "function", "client-password-of-43-characters-or-more-0123456789"
DATABASE, ROLE, ROLE_PASSWORD = "bare", "bare_role", "role-password"
BOUND_SECONDS = 10.0

SETTINGS: Mapping[str, str] = {
    "listen_addr": "127.0.0.1",
    "unix_socket_mode": "0700",
    "auth_type": "hba",
    "admin_users": AGENT_USER,
    "pool_mode": "transaction",
    "default_pool_size": "3",
    "max_client_conn": "6000",
    "server_login_retry": "0.2",
    "query_wait_timeout": "5",
    "stats_period": "60",
}
HBA = f"""
local all {AGENT_USER} scram-sha-256
local all all reject
host all {ROLE} all reject
hostssl tls_only {CLIENT} all scram-sha-256
host tls_only all all reject
host all {CLIENT} all scram-sha-256
host all quick all trust
"""


@dataclass
class BarePgbouncer:
    """A running PgBouncer: where it listens and its process, whose log is one file."""

    folder: Path
    port: int
    child: Child

    def conninfo(self, **changes: str) -> str:
        given = {
            "host": "127.0.0.1",
            "port": str(self.port),
            "dbname": DATABASE,
            "user": CLIENT,
            "password": CLIENT_PASSWORD,
            "sslmode": "disable",
            **changes,
        }
        return " ".join(f"{name}='{value}'" for name, value in given.items())

    async def console(self) -> AdminConsole:
        return await AdminConsole.open(str(self.folder), self.port, AGENT_PASSWORD)

    def log_lines(self) -> list[str]:
        return self.child.log_path.read_text(errors="replace").splitlines()

    def line_with(self, text: str) -> str:
        """Wait for the first line of the log that contains `text`."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.log_lines() if text in line]
            return bool(found)

        wait_until(f"no line with {text!r} in the log", look, BOUND_SECONDS)
        return found[0]


def add_role(postgres: EmbeddedPostgres) -> None:
    """Make the role and the database that a PgBouncer of this module serves, unless another test file has."""
    with psycopg.connect(postgres.conninfo()) as connection:
        known = connection.execute("select 1 from pg_roles where rolname = %s", [ROLE]).fetchone()
    if not known:
        postgres.create_role_and_database(ROLE, ROLE_PASSWORD, DATABASE)


def served(postgres: EmbeddedPostgres, database: str = DATABASE, role: str = ROLE) -> str:
    """Return the connection string for [databases] of a database of `postgres`, reached as `role`."""
    return f"host={postgres.host} port={postgres.port} dbname={database} user={role}"


@contextmanager
def bare_pgbouncer(
    program: PgbouncerProgram,
    databases: Mapping[str, str],
    users: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    sections: str = "",
) -> Iterator[BarePgbouncer]:
    """Run a PgBouncer that serves `databases` (name to connection string); `users` are further plain passwords."""
    with TempFolder("bare") as temp:
        folder = temp / "run"
        folder.mkdir(mode=0o700)
        port = free_port()
        secrets = {
            ROLE: ROLE_PASSWORD,
            CLIENT: verifier(CLIENT_PASSWORD),
            AGENT_USER: verifier(AGENT_PASSWORD),
            "quick": "",
            **(users or {}),
        }
        (folder / "users.txt").write_text("".join(f'"{user}" "{secret}"\n' for user, secret in secrets.items()))
        (folder / "hba.conf").write_text(HBA)
        given = {
            **SETTINGS,
            "listen_port": str(port),
            "unix_socket_dir": str(folder),
            "auth_file": f"{folder}/users.txt",
            "auth_hba_file": f"{folder}/hba.conf",
            **(settings or {}),
        }
        lines = ["[databases]", *(f"{name} = {value}" for name, value in databases.items()), sections, "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in given.items()]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        for path in (folder, *folder.iterdir()):
            give_to(server_user(), path)
        child = start_child(
            [program.path, folder / "pgbouncer.ini"], log_path=temp / "pgbouncer.log", as_user=server_user()
        )
        try:
            running = BarePgbouncer(folder, port, child)
            wait_until("PgBouncer did not answer", lambda: _answers(running), BOUND_SECONDS)
            yield running
        finally:
            child.stop(signal.SIGQUIT)


def _answers(running: BarePgbouncer) -> bool:
    if not running.child.is_running:
        raise AssertionError(running.child.last_log_lines())
    try:
        psycopg.connect(
            host=str(running.folder),
            port=running.port,
            user=AGENT_USER,
            password=AGENT_PASSWORD,
            dbname="pgbouncer",
            autocommit=True,
        ).close()
    except psycopg.OperationalError:
        return False
    return True
