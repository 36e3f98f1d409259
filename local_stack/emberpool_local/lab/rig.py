"""The lab's rig: a database with a standby, tasks of the proxy behind a balancer, and what can be done to them.

Every method blocks: call it through asyncio.to_thread. The functions are not the rig's: whoever runs them puts what
faults need of them into `rig.load`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from emberpool_local.errors import DeployUnavailable, ProxyUnavailable
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.balancer import Balancer
from emberpool_local.lab.clock import clock_library
from emberpool_local.lab.database import LabDatabase, open_database
from emberpool_local.lab.lab_aws import LabAws, open_aws
from emberpool_local.lab.network import LabNetwork, Node, open_network
from emberpool_local.lab.rig_options import RigOptions
from emberpool_local.lab.task import LabTask
from emberpool_local.lab.task_maker import BUDGET_NAME, FLEET_NAME, TaskMaker
from emberpool_local.lambda_runtime import Environment, Fleet
from emberpool_local.pgbouncer.program import find_pgbouncer
from emberpool_local.proxy import LocalProxy

__all__ = ["LabLoad", "Rig", "RigOptions", "open_rig"]

END_SECONDS = 40.0
# Until the database's keepalives have ended the last connection of a task that vanished: the agents' control
# connection has the longest limits (its SERVER_SETTINGS).
GONE_SECONDS = 32.0
# A supervisor gives up after some crashes in a minute.
MOST_CRASHES, CRASHES_COUNT_SECONDS = 3, 70.0


class LabLoad(Protocol):
    """What faults need of the functions."""

    fleet: Fleet

    def idle(self, count: int) -> AbstractAsyncContextManager[Sequence[Environment]]:
        """Begin no invocation in `count` environments while the context is open; entered when they are free."""

    async def burst(self, count: int) -> None:
        """Invoke so often at once, each in an environment of its own, beside what runs; counted like any other."""


@dataclass
class Rig:
    """The running parts; `notes` is what was done to them, on the clock of time.monotonic()."""

    options: RigOptions
    network: LabNetwork
    database: LabDatabase
    balancer: Balancer
    aws: LabAws | None
    maker: TaskMaker
    tasks: list[LabTask] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    load: LabLoad | None = None
    budget_name: str = BUDGET_NAME
    slots_allowed: list[tuple[float, int]] = field(default_factory=list)  # when it is not what the options say
    # A balancer is told all of its targets at once: of two threads the later must not tell the older ones.
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _gone_until: list[float] = field(default_factory=list)  # of tasks that vanished and that the database still counts
    _vanished: ExitStack = field(default_factory=ExitStack)  # the silence around them

    @property
    def functions(self) -> Node:
        """Where the execution environments are."""
        return self.network.node("functions")

    def note(self, text: str) -> None:
        """Put what was done into the time line."""
        self.notes.append((time.monotonic(), text))

    # --- tasks come and go

    def add(self, **settings: str) -> LabTask:
        """Start one more task; return it once the balancer sends it connections. Raises ProxyUnavailable."""
        return self._started(self.maker.make(settings))

    def add_all(self, count: int) -> None:
        """Start so many tasks side by side."""
        made = [self.maker.make({}) for _ in range(count)]
        with ThreadPoolExecutor(max(count, 1)) as threads:
            list(threads.map(self._started, made))
        # Not in the order in which they became ready: whom a seed's fault hits must not depend on that.
        self.tasks[:] = [*(task for task in self.tasks if task not in made), *made]

    def drain(self, task: LabTask) -> None:
        """End a task as ECS does, by SIGTERM; return when it has ended. Raises ProxyUnavailable when it does not."""
        self.note(f"{task.host} drains")
        task.terminate()
        wait_until(f"{task.host} did not end", lambda: not task.is_running, END_SECONDS)
        self._forget(task)
        self.note(f"{task.host} has drained")
        exit_code = task.proxy.child.process.returncode
        if exit_code:
            raise ProxyUnavailable(f"{task.host} ended with exit code {exit_code} when it drained", _its_log(task))
        self._remove(task)

    def replace(self, task: LabTask, **settings: str) -> LabTask:
        """Put a new task in the place of another, as a rolling deployment does: the new first, then the drain."""
        new = self.add(**settings)
        self.drain(task)
        return new

    def roll_out(self) -> None:
        """Replace every task, the oldest first, as many at once as there is room for."""
        old = list(self.tasks)
        while old:
            room = max(self.room_for_tasks(), 1)
            now, old = old[:room], old[room:]
            self.add_all(len(now))
            with ThreadPoolExecutor(len(now)) as threads:
                list(threads.map(self.drain, now))

    def kill(self, task: LabTask) -> None:
        """SIGKILL the whole task; return when its processes have ended. The kernel says goodbye for it."""
        self.note(f"{task.host} is killed")
        task.kill()
        self._forget(task)
        self._remove(task)

    def vanish(self, task: LabTask) -> None:
        """Let a task disappear without a FIN or a RST; its place in the database is free after its keepalives."""
        self.note(f"{task.host} vanishes")
        self._vanished.enter_context(self.network.silence(task.node))
        task.kill()
        self._gone_until.append(time.monotonic() + GONE_SECONDS)
        # Nobody deregisters it: the balancer resets its connections when it has not answered for long enough.
        wait_until(
            f"connections to {task.host}, which has vanished, are left at the balancer",
            lambda: not self.balancer.connections().get(task.host),
            END_SECONDS,
        )
        self._forget(task)
        self._remove(task)

    def room_for_tasks(self) -> int:
        """Return how many more tasks may be alive now: those that vanished count until the database forgets them."""
        gone = sum(until > time.monotonic() for until in self._gone_until)
        return self.options.most_tasks - len(self.tasks) - gone

    # --- faults of a task that stays

    def may_crash(self) -> list[LabTask]:
        """Return the tasks that bear one more crash."""
        lately = time.monotonic() - CRASHES_COUNT_SECONDS
        return [task for task in self.tasks if sum(at > lately for at in task.crashes) < MOST_CRASHES]

    def kill_pgbouncer(self, task: LabTask) -> None:
        """SIGKILL the task's PgBouncers; return when others answer."""
        before = task.pgbouncer_pids()
        self.note(f"{task.host}: PgBouncer is killed")
        task.crash(*before)
        wait_until(
            f"PgBouncer of {task.host} did not come back",
            lambda: len(set(task.pgbouncer_pids()) & task.answered_pids()) == len(before),
            END_SECONDS,
        )
        self.note(f"{task.host}: another PgBouncer answers")

    def kill_agent(self, task: LabTask) -> None:
        """SIGKILL the task's agent; return when another one is ready."""
        before = task.agent_pid()
        self.note(f"{task.host}: the agent is killed")
        task.crash(before)
        wait_until(
            f"the agent of {task.host} did not come back",
            lambda: task.agent_pid() not in (0, before) and task.is_ready(),
            END_SECONDS,
        )
        self.note(f"{task.host}: another agent is ready")

    # --- what the functions need, and what the database says

    def handler_environment(self) -> dict[str, str]:
        """Return the variables of a function behind the balancer, as deployed."""
        variables = {
            "EMBERPOOL_HOST": self.balancer.address,
            "EMBERPOOL_PORT": str(self.balancer.port),
            "EMBERPOOL_DATABASE": self.database.name,
            "EMBERPOOL_USER": LocalProxy.client_user,  # a secret's wins
            "EMBERPOOL_METRICS": "off",
        }
        if self.aws:
            return {
                **variables,
                "EMBERPOOL_SSLMODE": "verify-full",
                **self.aws.environment(),
                **self.aws.handler_environment(),
            }
        return {
            **variables,
            "EMBERPOOL_SSLMODE": "require",  # each task has made a CA for itself
            "EMBERPOOL_PASSWORD": self.maker.client_password,
        }

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database that is the primary now, as a superuser."""
        return self.database.ask(query, *parameters)

    def pool_connections(self) -> int:
        """Return how many connections the pools have at the database, without those of the agents."""
        query = (
            "select count(*) from pg_stat_activity where usename = %s and client_addr is not null "
            "and application_name !~ '^emberpool-(agent .*|probe|credentials)$'"
        )
        return int(self.ask(query, self.database.role)[0][0])

    def wait_until_balanced(self) -> None:
        """Return when the balancer sends new connections to every task."""
        wait_until(
            "the balancer does not send connections to every task",
            lambda: all(self.balancer.is_healthy(task.target) for task in self.tasks),
            END_SECONDS,
        )

    # --- parts

    def _started(self, task: LabTask) -> LabTask:
        self.note(f"{task.host} starts")
        try:
            task.proxy.open()
            with self._telling:
                self.balancer.add(task.target)
        except BaseException:
            task.proxy.close()
            self._remove(task)
            raise
        self.tasks.append(task)
        self._publish_tasks()
        self.note(f"{task.host} is ready")
        return task

    def _forget(self, task: LabTask) -> None:
        with self._telling:
            self.balancer.remove(task.target)
        self.tasks.remove(task)
        self._publish_tasks()

    def _publish_tasks(self) -> None:
        """Let the name of the fleet have the addresses of its tasks, as Cloud Map does."""
        if self.database.names:
            self.database.names.lead(FLEET_NAME, *(task.host for task in self.tasks))

    def _remove(self, task: LabTask) -> None:
        task.proxy.close()
        self.database.forget(task.node)
        self.network.remove(task.node)

    def end(self) -> None:
        """End all tasks, without a drain."""
        for task in self.tasks:
            task.kill()
        for task in list(self.tasks):
            self._forget(task)
            self._remove(task)
        self._vanished.close()


@contextmanager
def open_rig(options: RigOptions, progress: Callable[[str], None] = lambda _: None) -> Iterator[Rig]:
    """Start the rig with `options.tasks` tasks, ready; end everything when the context is left.

    Call it from the main thread before any other thread has been started: in namespaces this process moves into a
    network namespace of its own. Raises a LocalStackError.
    """
    # First: what has to be fetched or built needs the machine's own network.
    pgbouncer = find_pgbouncer(progress)
    library = clock_library(progress) if options.has_clock else None
    with ExitStack() as stack:
        network = stack.enter_context(open_network(options.network, progress))
        folder = stack.enter_context(TempFolder("lab"))
        progress(f"Starting the database and its standby ({network.kind})")
        database = stack.enter_context(open_database(network, options.max_connections, progress))
        aws = _aws(stack, network, folder, database, progress) if options.has_aws else None
        balancer = stack.enter_context(Balancer(network, notice_seconds=options.notice_seconds))
        maker = TaskMaker(options, network, database, aws, balancer.address, folder, pgbouncer, library)
        rig = Rig(options, network, database, balancer, aws, maker)
        stack.callback(rig.end)
        progress(f"Starting {options.tasks} tasks of the proxy")
        rig.add_all(options.tasks)
        yield rig


def _aws(
    stack: ExitStack, network: LabNetwork, folder: Path, database: LabDatabase, progress: Callable[[str], None]
) -> LabAws | None:
    try:
        return stack.enter_context(open_aws(network, folder, database))
    except DeployUnavailable as error:
        progress(f"{error.problem}: passwords are given by variables, and none is rotated")
        return None


def _its_log(task: LabTask) -> str:
    return "Its last lines:\n" + task.proxy.child.last_log_lines()
