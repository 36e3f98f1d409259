"""The real proxy process (`python -m emberpool_proxy`) in front of the embedded PostgreSQL."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.settings import variable

from ..processes import children_of, command_line, is_running

DATABASE_USER, DATABASE_PASSWORD, DATABASE = "pool_user", 'pool "password" with \\ signs', "proxy_tests"
CLIENT_USER, CLIENT_PASSWORD = "function", "client-password-of-43-characters-or-more-0123456789"
BOUND_SECONDS = 20.0
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def wait_until(sentence: str, fact: Callable[[], Any], timeout: float = BOUND_SECONDS) -> Any:
    """Return the fact once it is true; `sentence` is the failure."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if seen := fact():
            return seen
        time.sleep(0.01)
    raise AssertionError(f"{sentence} (within {timeout} s)")


@dataclass
class Proxy:
    """One proxy process and what it printed."""

    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    adopts_orphans: bool = False  # as a container's first process does
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> Proxy:
        log = self._stack.enter_context(self.log_path.open("wb"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "emberpool_proxy"],
            env=self.environment,
            stdout=log,
            stderr=log,
            preexec_fn=become_subreaper if self.adopts_orphans else None,  # noqa: PLW1509 (one call of libc)
        )
        return self

    def start_ready(self) -> Proxy:
        self.start()
        wait_until(
            "the proxy did not become ready", lambda: self.exit_code() is not None or self.status("/readyz") == 200
        )
        assert self.exit_code() is None, self.printed()
        return self

    def setting(self, name: str) -> str:
        return self.environment[variable(name)]

    def conninfo(self, **changes: str) -> str:
        given = {
            "host": "127.0.0.1",
            "port": self.setting("client_port"),
            "user": CLIENT_USER,
            "password": CLIENT_PASSWORD,
            "dbname": DATABASE,
            "sslmode": "verify-full",
            "sslrootcert": f"{self.setting('run_folder')}/ca.crt",
            **changes,
        }
        return " ".join(f"{name}='{value}'" for name, value in given.items())

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.setting('health_port')}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except (urllib.error.URLError, OSError):
            return 0, {}

    def status(self, path: str) -> int:
        return self.get(path)[0]

    def pgbouncer_pid(self) -> int:
        pids = self.pgbouncer_pids()
        return pids[-1] if pids else 0

    def pgbouncer_pids(self) -> list[int]:
        """Every PgBouncer that ever answered, in the order of their first answers."""
        seen = [line["pid"] for line in self.log_lines() if line["message"] == "pgbouncer answers"]
        return list(dict.fromkeys(seen))

    def agent_pid(self) -> int:
        """The agent: the supervisor's child that is not a PgBouncer."""
        for pid in self.children():
            if "agent" in command_line(pid):
                return pid
        return 0

    def printed(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.printed().splitlines() if line.endswith("}")]

    def exit_code(self) -> int | None:
        return self.process.poll()

    def children(self) -> set[int]:
        """Process ids of the supervisor's children, zombies among them."""
        return children_of(self.process.pid)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait(BOUND_SECONDS)
            for pid in self.pgbouncer_pids():
                wait_until("PgBouncer outlived its supervisor", lambda: not is_running(pid))  # noqa: B023 (called at once)
        self._stack.close()


def become_subreaper() -> None:
    """Adopt what descendants leave behind; the kernel keeps this over exec."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


@pytest.fixture(scope="session")
def database(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    postgres.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
    return postgres


@contextmanager
def proxies(
    database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, log_folder: Path
) -> Iterator[Callable[..., Proxy]]:
    """Makes proxies (not yet started) with overridden settings; ends them when the context ends."""
    made: list[Proxy] = []

    def make(pass_on: tuple[str, ...] = (), **overrides: object) -> Proxy:
        # Not in log_folder: a unix socket's path has 107 bytes, and root's PgBouncer runs as nobody.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="emberpool-test-"))
        Path(folder).chmod(0o755)
        given = {
            "database_host": database.host,
            "database_port": database.port,
            "database_name": DATABASE,
            "database_user": DATABASE_USER,
            "database_password": DATABASE_PASSWORD,
            "client_user": CLIENT_USER,
            "client_password": CLIENT_PASSWORD,
            "server_tls_mode": "disable",
            "listen_host": "127.0.0.1",
            "client_port": free_port(),
            "health_port": free_port(),
            "max_server_connections": 5,
            "drain_seconds": 0,
            "run_folder": f"{folder}/run",
            "pgbouncer_path": pgbouncer_program.path,
            **overrides,
        }
        environment = {variable(name): str(value) for name, value in given.items()}
        proxy = Proxy(
            {name: os.environ[name] for name in ("PATH", *pass_on)} | environment, log_folder / f"proxy-{len(made)}.log"
        )
        made.append(proxy)
        return proxy

    with ExitStack() as stack:
        yield make
        for proxy in made:
            proxy.close()


@pytest.fixture
def make_proxy(
    database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, tmp_path: Path
) -> Iterator[Callable[..., Proxy]]:
    """Makes proxies for one test."""
    with proxies(database, pgbouncer_program, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_proxy(
    database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Proxy]]:
    """Makes proxies that a module's tests share: for tests that leave nothing behind in them."""
    with proxies(database, pgbouncer_program, tmp_path_factory.mktemp("proxies")) as make:
        yield make
