"""All that is compared, before one PgBouncer: the endpoint as deployed, the same without signatures, the yardsticks."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import load, raw
from benchmarks.data.statements import PATH, STATEMENTS, Statement, create_table, plain_headers, signed_headers
from benchmarks.data.window import Load
from benchmarks.proxy.pair import Database, Pool, child_pid, running_proxy

from emberpool_local.host.children import start_child
from emberpool_local.host.ports import free_port, is_free
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram

SIGNED, NUMBERED, UNSIGNED = (
    "signed",
    "signed, with an id",
    "unsigned",
)  # an id: each request is an invocation of its own
STARLETTE, GRANIAN = "starlette, psycopg", "granian, asyncpg"
RAW = "psycopg"
YARDSTICKS = (STARLETTE, GRANIAN)
START_SECONDS = 15.0
MOST_CONCURRENT = 10_000  # the limit of a caller, which is 200 by default: what is measured is no limit
SETTINGS = {"client_tls_mode": "disable", "data_tls_mode": "disable", "data_most_concurrent": str(MOST_CONCURRENT)}
PLACE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    """One that answers HTTP on loopback; `user` signs, if anybody does."""

    name: str
    port: int
    pid: int
    user: str = ""
    password: str = ""
    is_numbered: bool = False

    def headers(self, statement: Statement) -> dict[str, str]:
        """Return the headers of a request, signed now."""
        if not self.user:
            return plain_headers(self.port)
        return signed_headers(self.port, statement, self.user, self.password, self.is_numbered)


@dataclass(frozen=True)
class Rig:
    """Everything that runs."""

    servers: Mapping[str, Server]
    pool: Pool

    def measure(self, name: str, statement: Statement, connections: int, seconds: float) -> Load:
        """Run one block."""
        shared = {"PgBouncer": self.pool.pgbouncer, "agent": self.pool.agent}
        if name == RAW:
            plan = raw.Plan(statement.sql, connections, seconds, processes=shared)
            return raw.run(plan, os.environ | self.pool.environment(tls=False))
        return load.run(self.plan(name, statement, connections, seconds, shared))

    def plan(
        self,
        name: str,
        statement: Statement,
        connections: int,
        seconds: float,
        processes: Mapping[str, int] | None = None,
        requests: int = 0,
    ) -> load.Plan:
        """Return what one of the servers is sent."""
        server = self.servers[name]
        return load.Plan(
            server.port,
            PATH,
            server.headers(statement),
            statement.body,
            connections,
            seconds,
            requests=requests,
            processes={"server": server.pid, **(processes or {})},
        )


@contextmanager
def running(database: Database, program: PgbouncerProgram, folder: Path) -> Iterator[Rig]:
    """Run all of them, and see that they answer the same."""
    create_table(database)
    port = free_port()
    with ExitStack() as stack:
        pool, proxy = stack.enter_context(running_proxy(database, program, SETTINGS | {"data_port": str(port)}))
        endpoint, target = child_pid(pool.supervisor, "data-endpoint"), pool.target
        environment = _environment(endpoint) | pool.environment(tls=False) | {"PGHOST": str(proxy.run_folder / "0")}
        signed = Server(SIGNED, port, endpoint, target.user, target.password)
        numbered = Server(NUMBERED, port, signed.pid, target.user, target.password, is_numbered=True)
        servers = [signed, numbered]
        for name, words in {
            UNSIGNED: ("benchmarks.data.unsigned",),
            STARLETTE: ("benchmarks.data.yardsticks", "starlette"),
            GRANIAN: ("benchmarks.data.yardsticks", "granian"),
        }.items():
            servers.append(stack.enter_context(_running(name, words, environment, folder)))
        _check_alike(servers)
        yield Rig({server.name: server for server in servers}, pool)


@contextmanager
def _running(name: str, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", *words, str(port)]
    log_path = folder / f"{words[-1]}.log"
    child = start_child(command, log_path=log_path, environment=environment, working_folder=PLACE)
    try:
        wait_until(
            f"{name} did not start: {child.last_log_lines()}",
            lambda: not child.is_running or not is_free(port),
            START_SECONDS,
        )
        if not child.is_running:
            raise RuntimeError(f"{name} ended at its start: {child.last_log_lines()}")
        yield Server(name, port, child.pid)
    finally:
        child.stop(signal.SIGKILL)


def _environment(pid: int) -> dict[str, str]:
    """Return a process's environment: the unsigned endpoint has the settings of the one that was deployed."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


def _check_alike(servers: Sequence[Server]) -> None:
    """See that all answer with the same records. Raises RuntimeError."""
    for statement in STATEMENTS:
        answers = {server.name: _records(server, statement) for server in servers}
        expected = answers[SIGNED]
        for name, records in answers.items():
            if records != expected or len(records) != statement.rows:
                raise RuntimeError(f"{name} answers {str(records)[:200]}, not {str(expected)[:200]}")


def _records(server: Server, statement: Statement) -> list[object]:
    url = f"http://127.0.0.1:{server.port}{PATH}"
    request = urllib.request.Request(url, statement.body.encode(), server.headers(statement))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        records: list[object] = json.load(answer)["records"]
        return records
