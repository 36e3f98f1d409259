"""The real proxy, `python -m emberpool_proxy`, as a child process on this machine.

Owns its ports, its run folder and its client user; how PgBouncer is run is the proxy's own. Passwords reach it by its
environment only.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import make_conninfo

from emberpool_local.errors import PortTaken, ProxyUnavailable
from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import LOOPBACK, free_port, is_free
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram, find_pgbouncer
from emberpool_proxy.settings import PREFIX, variable

CLIENT_USER = "function"
START_SECONDS = 20.0
# Local clients leave before the proxy is stopped; what is left is cut off between two transactions.
DRAIN_SECONDS = 0.5
STOP_SECONDS = 5.0
KILL_AFTER_SECONDS = 10.0
PORT_TRIES = 3  # another process may take a free port between our look and the proxy's bind
PROBE_TIMEOUT_SECONDS = 2.0
# The proxy is on this machine: an HTTP proxy that the environment names must not be asked.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class DatabaseAccess:
    """The database behind the proxy and the role that the pool uses there."""

    host: str
    port: int
    name: str
    user: str
    password: str = field(repr=False)


class LocalProxy:
    """The proxy in front of `database`: with LocalProxy(access) as proxy.

    `settings` are further fields of ProxySettings and win over ours, `listen_host`, `health_port` and
    `client_password` among them; an empty one leaves a setting out. `launcher` makes the command line that runs the
    proxy elsewhere, in a namespace for example, and `environment` wins over what it inherits. open() raises
    ProxyUnavailable when it does not become ready, PortTaken when `client_port` is given but taken, and what
    find_pgbouncer() raises. The constructor opens nothing.
    """

    client_user = CLIENT_USER

    def __init__(
        self,
        database: DatabaseAccess,
        max_server_connections: int = 20,
        client_port: int | None = None,
        settings: Mapping[str, str] | None = None,
        pgbouncer: PgbouncerProgram | None = None,
        progress: Callable[[str], None] = lambda _: None,
        has_data_endpoint: bool = False,
        launcher: Callable[[Sequence[str]], Sequence[str]] = list,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.database = database
        self._launcher = launcher
        self._inherited = dict(environment or {})
        self._has_data_endpoint = has_data_endpoint
        self.max_server_connections = max_server_connections
        self._settings = dict(settings or {})
        self.host = self._settings.get("listen_host", LOOPBACK)
        self.client_password = self._settings.get("client_password") or secrets.token_urlsafe(32)
        self._wanted_port = client_port
        self._wanted_health_port = int(self._settings.get("health_port", 0))
        self._wanted_data_port = int(self._settings.get("data_port", 0))
        self._pgbouncer = pgbouncer
        self._progress = progress
        self._folder = TempFolder("proxy")
        self._port = 0
        self._health_port = 0
        self._data_port = 0
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The port for functions; known once it is open."""
        return self._port

    @property
    def health_port(self) -> int:
        """The port of /healthz and /readyz; known once it is open."""
        return self._health_port

    @property
    def data_url(self) -> str:
        """Where the data endpoint answers, without TLS as it is on this machine; known once it is open."""
        return f"http://{self.host}:{self._data_port}"

    @property
    def status_url(self) -> str:
        """Where the proxy tells its health, metrics and status."""
        return f"http://{self.host}:{self._health_port}"

    @property
    def run_folder(self) -> Path:
        """The proxy's rendered files and sockets."""
        given = self._settings.get("run_folder")
        return Path(given) if given else self._folder.path / "run"

    @property
    def certificate_path(self) -> Path:
        """The certificate authority that the proxy made for itself, which clients verify it by."""
        return self.run_folder / "ca.crt"

    @property
    def log_path(self) -> Path:
        """The proxy's log: JSON lines."""
        return self._folder.path / "proxy.log"

    @property
    def child(self) -> Child:
        """The running process."""
        if self._child is None:
            raise RuntimeError("the proxy is not open")
        return self._child

    def conninfo(self) -> str:
        """Return the connection string of the client user, the certificate verified."""
        return make_conninfo(
            host=self.host,
            port=self.port,
            user=self.client_user,
            password=self.client_password,
            dbname=self.database.name,
            sslmode="verify-full",
            sslrootcert=str(self.certificate_path),
        )

    def open(self) -> None:
        """Start the proxy and wait until it is ready for connections."""
        # Of a task beside others each has the same port on an address of its own.
        if self._wanted_port is not None and self.host == LOOPBACK and not is_free(self._wanted_port):
            raise _port_taken(self._wanted_port)
        if self._pgbouncer is None:
            self._pgbouncer = find_pgbouncer(self._progress)
        try:
            self._folder.open()
            self._start_on_ports()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drain and stop the proxy and remove its folder."""
        try:
            if self._child is not None:
                self._child.stop(signal.SIGTERM, KILL_AFTER_SECONDS)
                self._child = None
        finally:
            self._folder.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_on_ports(self) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            self._port = self._wanted_port or free_port()
            self._health_port = self._wanted_health_port or free_port()
            self._data_port = self._wanted_data_port or (free_port() if self._has_data_endpoint else 0)
            self._child = start_child(
                self._launcher([sys.executable, "-m", "emberpool_proxy"]),
                log_path=self.log_path,
                environment=self._environment(),
                working_folder=self._folder.path,
                death_signal=signal.SIGTERM,  # it stops its PgBouncer itself
            )
            if self._became_ready(self._child):
                return
            lost_a_port = not (is_free(self._port) and is_free(self._health_port))
            if not (tries_left and lost_a_port) or (self._wanted_port and self._wanted_health_port):
                raise self._unavailable("ended while it started")

    def _became_ready(self, child: Child) -> bool:
        """Wait until the proxy is ready; False if it ended. Raises ProxyUnavailable when it does neither."""
        try:
            wait_until(
                "the proxy did not become ready",
                lambda: not child.is_running or self._is_ready(),
                START_SECONDS,
            )
        except TimeoutError as error:
            raise self._unavailable("did not become ready") from error
        return child.is_running

    def _is_ready(self) -> bool:
        return _answers(f"http://{self.host}:{self._health_port}/readyz") and (
            not self._data_port or _answers(f"{self.data_url}/openapi.json")
        )

    def _environment(self) -> dict[str, str]:
        if self._pgbouncer is None:
            raise RuntimeError("open() finds PgBouncer first")
        settings = {
            "database_host": self.database.host,
            "database_port": str(self.database.port),
            "database_name": self.database.name,
            "database_user": self.database.user,
            "database_password": self.database.password,
            "server_tls_mode": "disable",  # the embedded server may have no TLS, and both are on this machine
            "client_user": self.client_user,
            "client_password": self.client_password,
            "listen_host": self.host,
            "client_port": str(self._port),
            "health_port": str(self._health_port),
            "data_port": str(self._data_port),
            "data_tls_mode": "disable",
            "max_server_connections": str(self.max_server_connections),
            "drain_seconds": str(DRAIN_SECONDS),
            "stop_seconds": str(STOP_SECONDS),
            "run_folder": str(self.run_folder),
            "pgbouncer_path": str(self._pgbouncer.path),
            **self._settings,
        }
        # A proxy setting of the user's shell would be taken for one of this proxy's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return inherited | self._inherited | {variable(name): value for name, value in settings.items()}

    def _unavailable(self, what: str) -> ProxyUnavailable:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        lines = [_message(line) for line in text.splitlines()[-8:]]
        return ProxyUnavailable(
            "The proxy " + what + ". Its last lines:\n" + "\n".join(lines),
            "Mend what the lines name; `emberpool up` shows the same proxy without a burst",
        )


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=PROBE_TIMEOUT_SECONDS):
            return True  # other answers than 2xx raise
    except (urllib.error.URLError, OSError):
        return False


def _message(line: str) -> str:
    """Return the message of a JSON log line, or the line itself (a traceback, for example)."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return line
    return str(parsed.get("message", line)) if isinstance(parsed, dict) else line


def _port_taken(port: int) -> PortTaken:
    return PortTaken(
        f"Another program listens on port {port} of {LOOPBACK}, where the proxy was to listen",
        "Choose another port, or leave the port out to get a free one",
    )
