"""A fleet that shares one budget on one machine, and what can happen to its tasks.

Each task is the real proxy with an address of its own on loopback, behind the balancer, and reaches the one PostgreSQL
through its own relay. A test sees the fleet as the database does: by the addresses of the backends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from emberpool_local.host.ports import LOOPBACK, free_port
from emberpool_local.lab.balancer import Balancer
from emberpool_local.lab.relays import Relays
from emberpool_local.lab.sampler import slot_class
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.settings import AGENT_CONNECTIONS

from ..processes import is_running
from .conftest import (
    DATABASE,
    DATABASE_PASSWORD,
    DATABASE_USER,
    Proxy,
    proxies,
    wait_until,
)
from .tasks import is_ready

MOST_TASKS = 4
FLOOR = 2
SLOTS = 16
MOST_OF_ALL = round(0.9 * SLOTS)
BUDGET = MOST_TASKS * (FLOOR + AGENT_CONNECTIONS) + SLOTS
BUDGET_NAME = "rig"
MAX_CONNECTIONS = 100
IDLE_SECONDS = 2.0
# As the database's keepalives do it, in their order: the pool's connections, and the control connection only after the
# agent's own deadline of 12 s for an answer, by which it has lowered PgBouncer's limit.
POOL_GONE_SECONDS = 3.0
CONTROL_GONE_SECONDS = 15.0
BOUND_SECONDS = 30.0
LOG_CHARACTERS = 5000  # of the end of a task's log, in a failure

BY_TASK = """
    select host(client_addr), count(*) from pg_stat_activity
    where usename = %s and client_addr is not null and application_name !~ '^emberpool-(agent .*|probe|credentials)$'
    group by 1
"""
SLOTS_BY_TASK = """
    select host(client_addr), array_agg(objid::bigint) from pg_locks join pg_stat_activity using (pid)
    where locktype = 'advisory' and classid = %s::bigint::oid and objsubid = 2 and mode = 'ExclusiveLock'
    and granted group by 1
"""
CONTROL_BACKENDS = """
    select host(client_addr), pid from pg_stat_activity
    where usename = %s and application_name like 'emberpool-agent %%' order by backend_start
"""


@dataclass
class Task:
    """One task: its proxy, and the address that everybody knows it by."""

    host: str
    proxy: Proxy

    def document(self, path: str = "/status") -> dict[str, Any]:
        """Return what the health port answers at `path`; empty when it does not answer."""
        url = f"http://{self.host}:{self.proxy.setting('health_port')}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (urllib.error.URLError, OSError):
            return {}

    def metric(self, name: str) -> float | None:
        """Return a metric of /metrics, by the beginning of its line, or None."""
        with suppress(urllib.error.URLError, OSError):
            url = f"http://{self.host}:{self.proxy.setting('health_port')}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith(name):
                        return float(line.rsplit(" ", 1)[1])
        return None

    def conninfo(self, **changes: str) -> str:
        """Return the connection string of the client user at this task itself, past the balancer."""
        return self.proxy.conninfo(host=self.host, sslmode="require", connect_timeout="20", **changes)


@dataclass
class FleetRig:
    """The fleet: starts tasks, does things to them, and keeps what was done for the time line."""

    server: EmbeddedPostgres
    make_proxy: Callable[..., Proxy]
    balancer: Balancer
    relays: Relays
    settings: dict[str, object]
    tasks: list[Task] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    next_number: int = 2
    silences: dict[str, int] = field(default_factory=dict)
    silence_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def note(self, text: str) -> None:
        """Put what was done into the time line."""
        self.notes.append((time.monotonic(), text))

    # --- tasks come and go

    def make(self, **settings: object) -> Task:
        """Return a task that is not started yet."""
        host = f"127.0.0.{self.next_number}"
        self.next_number += 1
        port = self.relays.way(host, LOOPBACK, self.server.port)
        proxy = self.make_proxy(listen_host=host, database_port=port, **{**self.settings, **settings})
        return Task(host, proxy)

    def add(self, **settings: object) -> Task:
        """Start one more task; return it once the balancer sends it connections."""
        task = self.make(**settings)
        self.note(f"{task.host} starts")
        task.proxy.start()
        wait_until(
            f"{task.host} did not become ready",
            lambda: task.proxy.exit_code() is not None or is_ready(task.proxy),
            BOUND_SECONDS,
        )
        assert task.proxy.exit_code() is None, task.proxy.printed()[-LOG_CHARACTERS:]
        self.balancer.add(self._target(task))
        self.tasks.append(task)
        self.note(f"{task.host} is ready")
        return task

    def drain(self, task: Task) -> None:
        """End a task as ECS does; return when it has ended."""
        self.note(f"{task.host} drains")
        task.proxy.terminate()
        wait_until(f"{task.host} did not end", lambda: task.proxy.exit_code() is not None, BOUND_SECONDS)
        assert task.proxy.exit_code() == 0, task.proxy.printed()[-LOG_CHARACTERS:]
        self._forget(task)
        self.note(f"{task.host} has drained")

    def kill(self, task: Task) -> None:
        """SIGKILL the whole task; return when its processes and its backends have ended."""
        self.note(f"{task.host} is killed")
        self._kill_processes(task)
        self._forget(task)
        wait_until(f"backends of {task.host} are left", lambda: task.host not in self.backends(), BOUND_SECONDS)

    def vanish(self, task: Task, control_seconds: float = CONTROL_GONE_SECONDS) -> None:
        """Let a task disappear without a FIN: the database finds out by its keepalives, or rather the link's."""
        self.note(f"{task.host} vanishes")
        self._silence(task, min(POOL_GONE_SECONDS, control_seconds / 2), control_seconds)
        self._kill_processes(task)
        self._forget(task)

    def _kill_processes(self, task: Task) -> None:
        children = task.proxy.children()
        for pid in (task.proxy.process.pid, *children):  # at once, as the end of a container or its machine does
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        task.proxy.process.wait(BOUND_SECONDS)
        for pid in children:
            wait_until(f"process {pid} of {task.host} is left", lambda: not is_running(pid))  # noqa: B023 (called at once)

    def _forget(self, task: Task) -> None:
        self.balancer.remove(self._target(task))
        self.tasks.remove(task)

    def _target(self, task: Task) -> tuple[str, int, int]:
        return task.host, int(task.proxy.setting("client_port")), int(task.proxy.setting("health_port"))

    # --- faults of a task that stays

    def kill_pgbouncer(self, task: Task) -> None:
        """SIGKILL the task's PgBouncer; return when another one answers."""
        self.note(f"{task.host}: PgBouncer is killed")
        before = task.proxy.pgbouncer_pid()
        os.kill(before, signal.SIGKILL)
        wait_until(f"PgBouncer of {task.host} did not come back", lambda: task.proxy.pgbouncer_pid() != before)

    def kill_agent(self, task: Task) -> None:
        """SIGKILL the task's agent; return when another one is ready."""
        self.note(f"{task.host}: the agent is killed")
        before = task.proxy.agent_pid()
        os.kill(before, signal.SIGKILL)
        wait_until(
            f"the agent of {task.host} did not come back",
            lambda: task.proxy.exit_code() is not None or task.proxy.agent_pid() not in (0, before),
        )
        wait_until(
            f"{task.host} did not become ready again",
            lambda: task.proxy.exit_code() is not None or is_ready(task.proxy),
            BOUND_SECONDS,
        )
        assert task.proxy.exit_code() is None, task.proxy.printed()[-LOG_CHARACTERS:]
        self.note(f"{task.host}: another agent is ready")

    def partition(self, task: Task) -> None:
        """Cut the task off from its database until `heal`."""
        self.note(f"{task.host} is partitioned")
        self._silence(task, POOL_GONE_SECONDS, CONTROL_GONE_SECONDS)

    def heal(self, task: Task) -> None:
        """End the partition."""
        self.note(f"{task.host} is connected again")
        self.end_silence(task.host)

    def end_silence(self, host: str) -> None:
        """End the partition of an address, if there is one."""
        if host in self.silences:
            self.relays.end(self.silences.pop(host))

    def _silence(self, task: Task, pool_seconds: float, control_seconds: float) -> None:
        number = self.silences[task.host] = next(self.silence_numbers)
        self.relays.silence(number, task.host, LOOPBACK, pool_seconds=pool_seconds, control_seconds=control_seconds)

    def end_control_connection(self, task: Task) -> bool:
        """Terminate the backend of the task's control connection, if it has one."""
        self.note(f"{task.host}: the control connection is terminated")
        pids = [pid for host, pid in self.control_backends() if host == task.host]
        return any(self.ask("select pg_terminate_backend(%s)", pid)[0][0] for pid in pids)

    # --- what the database says

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask as a superuser."""
        with psycopg.connect(self.server.conninfo(database=DATABASE), autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def backends(self) -> dict[str, int]:
        """Return the pool connections by task."""
        return dict(self.ask(BY_TASK, DATABASE_USER))

    def slots(self) -> dict[str, frozenset[int]]:
        """Return the numbers of the slots that each task holds."""
        return {task: frozenset(numbers) for task, numbers in self.ask(SLOTS_BY_TASK, slot_class(BUDGET_NAME))}

    def held(self, *tasks: Task) -> int:
        """Return how many slots these tasks hold; without any: all tasks."""
        hosts = {task.host for task in tasks}
        return sum(len(numbers) for host, numbers in self.slots().items() if not tasks or host in hosts)

    def control_backends(self) -> list[tuple[str, int]]:
        """Return the control connections: the task's address, the process id of the backend."""
        return self.ask(CONTROL_BACKENDS, DATABASE_USER)

    def is_quiet(self) -> bool:
        """Whether the fleet has no connection at all at the database."""
        count = self.ask("select count(*) from pg_stat_activity where usename = %s", DATABASE_USER)
        return count[0][0] == 0

    def wait_until_quiet(self) -> None:
        """Return when all slots are free and no connection of the fleet is left."""
        wait_until("connections of the fleet are left without any demand", self.is_quiet, BOUND_SECONDS)
        assert self.slots() == {}


async def until(failure: str, fact: Callable[[], Any], within_seconds: float = BOUND_SECONDS) -> Any:
    """Return the fact once it is true; `failure` is the sentence of the failure."""
    end = time.monotonic() + within_seconds
    while not (seen := await asyncio.to_thread(fact)):
        assert time.monotonic() < end, f"{failure} (within {within_seconds:g} s)"
        await asyncio.sleep(0.02)
    return seen


async def has_most(rig: FleetRig, task: Task) -> None:
    """Return when the task has 90% of the slots and the server connections to go with them."""
    await until(f"{task.host} did not get the slots", lambda: rig.held(task) >= MOST_OF_ALL)
    await until(f"{task.host} does not use its slots", lambda: rig.backends().get(task.host, 0) >= FLOOR + MOST_OF_ALL)


@contextmanager
def fleet_rig(pgbouncer_program: PgbouncerProgram, folder: Path, **settings: object) -> Iterator[FleetRig]:
    """Run a database for a fleet, and end what the test started; no task is running yet."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(max_connections=MAX_CONNECTIONS))
        _let_in_all_of_loopback(server)
        server.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        relays = stack.enter_context(Relays())
        balancer = stack.enter_context(Balancer(notice_seconds=0.5))
        given: dict[str, object] = {
            "client_port": free_port(),
            "health_port": free_port(),
            "max_server_connections": BUDGET,
            "most_tasks_alive": MOST_TASKS,
            "floor_connections": FLOOR,
            "budget_name": BUDGET_NAME,
            "server_idle_seconds": IDLE_SECONDS,
            "balancer_notice_seconds": 1.0,
            "drain_seconds": 2.0,
            "stop_seconds": 20,
            **settings,
        }
        make_proxy = stack.enter_context(proxies(server, pgbouncer_program, folder))
        yield FleetRig(server, make_proxy, balancer, relays, given)


def _let_in_all_of_loopback(server: EmbeddedPostgres) -> None:
    # The tasks' connections come from their addresses.
    with (server.data_folder / "pg_hba.conf").open("a") as file:
        file.write("host all all 127.0.0.0/8 scram-sha-256\n")
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("select pg_reload_conf()")


@dataclass
class Demand:
    """Clients of one task, each of which holds a server connection for `hold_seconds` again and again."""

    task: Task
    clients: int
    hold_seconds: float = 0.05
    done: int = 0
    errors: list[str] = field(default_factory=list)
    is_over: bool = False

    async def client(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        """Run one client's queries until the demand is over."""
        while not self.is_over:
            try:
                await connection.execute("select pg_sleep(%s)", [self.hold_seconds])
                self.done += 1
            except psycopg.Error as error:
                self.errors.append(str(error))
                return


@asynccontextmanager
async def demand(task: Task, clients: int, hold_seconds: float = 0.05, **login: str) -> AsyncIterator[Demand]:
    """Connect so many clients to a task, then let them work until the context is left."""
    connections = [
        await psycopg.AsyncConnection.connect(task.conninfo(**login), autocommit=True, prepare_threshold=None)
        for _ in range(clients)
    ]
    made = Demand(task, clients, hold_seconds)
    running = [asyncio.create_task(made.client(connection)) for connection in connections]
    try:
        yield made
    finally:
        made.is_over = True
        await asyncio.gather(*running)
        for connection in connections:
            await connection.close()
