"""An embedded PostgreSQL: a throwaway server on an address of this machine that leaves nothing behind.

Owns its data, log and socket folders, its process and its superuser. Which PostgreSQL it is, postgres_program decides.
It does not sync to disk: what it holds survives a crash of the server, but not one of the machine.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from emberpool_local.errors import PortTaken, PostgresUnavailable
from emberpool_local.host.children import Child, run_child, start_child
from emberpool_local.host.ports import LOOPBACK, free_port, is_free
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.program import PostgresProgram, find_postgres

StopMode = Literal["fast", "immediate"]

SUPERUSER = "postgres"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
LAST_WORDS_SECONDS = 2.0
PORT_TRIES = 5  # another process may take a free port between our look and PostgreSQL's bind
RESERVED_CONNECTIONS = 3  # PostgreSQL's own default of superuser_reserved_connections
STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# The servers get no variable of ours: a PG* variable of the user's would change what they do.
SERVER_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

BASE_SETTINGS: Mapping[str, str] = {
    "superuser_reserved_connections": str(RESERVED_CONNECTIONS),
    "shared_buffers": "32MB",
    # No fsync, but commits are still written before they are acknowledged: a crash of the server loses none.
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_destination": "jsonlog",
    "logging_collector": "on",
    "log_filename": "postgresql.log",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
    "log_connections": "on",
    "log_timezone": "UTC",
    "lc_messages": "C",
}


class EmbeddedPostgres:
    """A PostgreSQL server for this process: with EmbeddedPostgres(max_connections=40) as postgres.

    `settings` are lines of postgresql.conf and win over ours, `access_rules` lines of pg_hba.conf that come after
    those for 127.0.0.1. open() raises PortTaken when `port` is given but taken, PostgresUnavailable when there is no
    PostgreSQL or it does not start. The constructor opens nothing.
    """

    superuser = SUPERUSER

    def __init__(
        self,
        max_connections: int = 40,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        program: PostgresProgram | None = None,
        host: str = LOOPBACK,
        access_rules: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.max_connections = max_connections
        self.superuser_password = secrets.token_urlsafe(24)
        self._wanted_port = port
        own = {"listen_addresses": host, "max_connections": str(max_connections)}
        self._settings = {**BASE_SETTINGS, **own, **(settings or {})}
        self._access_rules = tuple(access_rules)
        self._program = program
        self._folder = TempFolder("postgres")
        self._port = 0
        self._server: Child | None = None

    @property
    def port(self) -> int:
        """The port on `host`; known once it is open and kept over restarts."""
        return self._port

    @property
    def program(self) -> PostgresProgram:
        """The PostgreSQL that runs; looked for at the first use."""
        if self._program is None:
            self._program = find_postgres()
        return self._program

    @property
    def is_running(self) -> bool:
        """Whether the server is up."""
        return self._server is not None and self._server.is_running

    @property
    def reserved_connections(self) -> int:
        """How many of max_connections only a superuser gets."""
        return int(self._settings["superuser_reserved_connections"])

    @property
    def log_path(self) -> Path:
        """The server's log, one JSON object a line; `connection authorized` lines tell who connected."""
        return self._log_folder / "postgresql.json"

    def conninfo(
        self, user: str = SUPERUSER, password: str | None = None, database: str = "postgres", *, by_socket: bool = False
    ) -> str:
        """Return the connection string of a user; the superuser's password need not be given."""
        if password is None and user == SUPERUSER:
            password = self.superuser_password
        host = str(self.socket_folder) if by_socket else self.host
        return make_conninfo(
            host=host, port=self.port, user=user, password=password, dbname=database, sslmode="disable"
        )

    def open(self) -> None:
        """Make the data folder and start the server."""
        if self._wanted_port is not None and not is_free(self._wanted_port, self.host):
            raise self._port_taken(self._wanted_port)
        try:
            self._folder.open()
            self._make_data_folder()
            self._start_on_a_port()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the server and remove its folder."""
        try:
            self.stop()
        finally:
            self._folder.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server again on the port that it had. Raises PostgresUnavailable."""
        if not self._started(self._port):
            raise self._port_taken(self._port)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server: `fast` rolls back and says goodbye, `immediate` is a crash as its clients see it."""
        if self._server is not None:
            self._server.stop(STOP_SIGNALS[mode], STOP_SECONDS)
            self._server = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same port: what clients see of a reboot or, `immediate`, of a failover."""
        self.stop(mode)
        self.start()

    def create_role_and_database(self, role: str, password: str, database: str) -> None:
        """Create a role that may log in and a database that it owns."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            # Only a verifier goes to the server: a statement that fails would be logged with the password.
            verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
            )
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), sql.Identifier(role))
            )

    @property
    def data_folder(self) -> Path:
        """Where the server keeps its data."""
        return self._folder.path / "data"

    @property
    def socket_folder(self) -> Path:
        """Where its unix socket is; as a host it is the way to the server that no network has a part in."""
        return self._folder.path / "socket"

    @property
    def _log_folder(self) -> Path:
        return self._folder.path / "log"

    @property
    def _output_path(self) -> Path:
        """What the programs print themselves; the server's log goes to log_path."""
        return self._folder.path / "output.txt"

    def _make_data_folder(self) -> None:
        for folder in (self.data_folder, self._log_folder, self.socket_folder):
            folder.mkdir(mode=0o700)
            give_to(server_user(), folder)
        self._initdb()
        settings = {
            "log_directory": str(self._log_folder),
            "unix_socket_directories": str(self.socket_folder),
            **self._settings,
        }
        with (self.data_folder / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {quoted(value)}\n" for name, value in settings.items())
        with (self.data_folder / "pg_hba.conf").open("a") as file:
            file.writelines(f"{rule}\n" for rule in self._access_rules)

    def _initdb(self) -> None:
        password_file = self._folder.path / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.superuser_password)
        give_to(server_user(), password_file)
        command: list[str | Path] = [
            self.program.initdb,
            f"--pgdata={self.data_folder}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",  # the one locale that every machine has
            "--no-sync",
            "--no-instructions",
        ]
        exit_code = run_child(
            command,
            log_path=self._output_path,
            environment=SERVER_ENVIRONMENT,
            as_user=server_user(),
            timeout_seconds=START_SECONDS,
        )
        password_file.unlink()
        if exit_code != 0:
            raise self._unavailable(f"initdb ended with exit code {exit_code}")

    def _start_on_a_port(self) -> None:
        tries = PORT_TRIES if self._wanted_port is None else 1
        for _ in range(tries):
            self._port = self._wanted_port or free_port()
            if self._started(self._port):
                return
        raise self._port_taken(self._port)

    def _started(self, port: int) -> bool:
        """Start the server and wait until it takes connections; False if another program has the port."""
        self._output_path.unlink(missing_ok=True)
        self._server = start_child(
            [self.program.postgres, "-D", self.data_folder, "-p", str(port)],
            log_path=self._output_path,
            environment=SERVER_ENVIRONMENT,
            as_user=server_user(),
            death_signal=signal.SIGQUIT,  # after SIGKILL it would leave its shared memory behind
        )
        server = self._server
        try:
            wait_until(
                "PostgreSQL did not become ready",
                lambda: not server.is_running or self._is_ready(server),
                START_SECONDS,
            )
        except TimeoutError as error:
            raise self._unavailable(str(error)) from error
        if server.is_running:
            return True
        self._server = None
        if not is_free(port, self.host):
            return False
        # The log collector is a process of its own: it may still write the reason when the server has ended.
        with suppress(TimeoutError):
            wait_until("no reason in the log", lambda: "FATAL" in self._log_text(), LAST_WORDS_SECONDS)
        raise self._unavailable(f"It ended with exit code {server.process.returncode} while it started")

    def _is_ready(self, server: Child) -> bool:
        # Its 1st line is the pid, its 8th the state. Unlike a connection, this leaves no login in the log.
        try:
            lines = (self.data_folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(server.pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _log_text(self) -> str:
        files = (path for path in (self._output_path, self.log_path) if path.exists())
        return "\n".join(path.read_text(errors="replace") for path in files)

    def _unavailable(self, what: str) -> PostgresUnavailable:
        last_lines = "\n".join(self._log_text().splitlines()[-8:])
        return PostgresUnavailable(
            f"PostgreSQL ({self.program.origin}, {self.program.bin_folder}) did not start. {what}. "
            f"Its last lines:\n{last_lines}",
            "Free memory or disk space if the lines say so; to use another PostgreSQL, "
            "set EMBERPOOL_POSTGRES_BIN to the folder of its programs",
        )

    def _port_taken(self, port: int) -> PortTaken:
        return PortTaken(
            f"Another program listens on port {port} of {self.host}, where PostgreSQL was to listen",
            "Choose another port, or leave the port out to get a free one",
        )


def quoted(value: str) -> str:
    """Return the value as postgresql.conf wants it."""
    return "'" + value.replace("'", "''") + "'"
