"""What the fleet's coordination costs the database, and what it costs the agents: statements and CPU a second.

Statements are what pg_stat_statements counts for the pool's role, without those of the load itself; CPU is that of the
control connections' backends.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.command import Progress
from benchmarks.fleet.rig import (
    FleetTerms,
    RunningFleet,
    RunningTask,
    Watch,
    pgbench_of,
    running_alone,
    running_database,
    running_fleet,
    watching,
)
from benchmarks.proxy.pair import cpu_seconds

from emberpool_local.pgbouncer.program import PgbouncerProgram

LOAD = "emberpool_bench_load"  # in the statements of the load, so that they are not counted
CALLS = """
    select coalesce(sum(calls) filter (where query ~* 'advisory|pg_locks|pg_try_|emberpool_fleet'), 0),
        coalesce(sum(calls), 0),
        coalesce(sum(calls) filter (where query ~* 'pg_locks'), 0),
        coalesce(sum(total_exec_time) filter (where query ~* 'pg_locks'), 0)
    from pg_stat_statements as s join pg_roles on pg_roles.oid = s.userid
    where rolname = %s and query not like %s
"""
SLOTS_PER_TASK = 6
SETTLE_SECONDS = 4.0
HOLD_SECONDS = 0.1
AWAKE, STEADY, CONTENTION = "awake, no slots", "steady load", "contention"


@dataclass(frozen=True)
class Cost:
    """What was used a second. CPU is a share of one core in percent."""

    tasks: int
    coordination_statements: float  # about locks, of all tasks together
    other_statements: float  # of the agents: how the database is
    views: float  # of the former: those that read all of the fleet's locks
    view_ms: float  # what one takes the database
    database_cpu_percent: float  # of all control connections' backends
    slots_held: int
    agent_cpu_percent: float = 0.0  # of one agent process, the mean of all
    lag_seconds: float = 0.0  # of a simulation: how late its process was at most


@dataclass(frozen=True)
class Counted:
    """One reading of the counters."""

    coordination: int
    all_of_role: int
    views: int
    view_ms: float
    backend_cpu: dict[int, float]
    slots_held: int

    def since(self, before: Counted, seconds: float, tasks: int, lag_seconds: float = 0.0) -> Cost:
        """Return the costs a second since another reading."""
        # A backend that is gone has taken its figure along, a new one brings all of its own.
        cpu = sum(used - before.backend_cpu.get(pid, 0.0) for pid, used in self.backend_cpu.items())
        coordination = self.coordination - before.coordination
        views = self.views - before.views
        return Cost(
            tasks=tasks,
            coordination_statements=coordination / seconds,
            other_statements=(self.all_of_role - before.all_of_role - coordination) / seconds,
            views=views / seconds,
            view_ms=(self.view_ms - before.view_ms) / max(views, 1),
            database_cpu_percent=cpu / seconds * 100,
            slots_held=self.slots_held,
            lag_seconds=lag_seconds,
        )


@dataclass
class Statements:
    """Reads the counters."""

    watch: Watch

    def read(self) -> Counted:
        """Return what is counted now. Raises RuntimeError without pg_stat_statements."""
        rows = self.watch.connection.execute(CALLS, [self.watch.role, f"%{LOAD}%"]).fetchall()
        coordination, all_of_role, views, view_ms = rows[0]
        cpu = {pid: cpu_seconds(pid) for pid in self.watch.control_backends() if Path(f"/proc/{pid}").exists()}
        return Counted(int(coordination), int(all_of_role), int(views), float(view_ms), cpu, self.watch.held())


@dataclass
class Costs:
    """Costs of real tasks, by their number and by what they do; and of the agent of a task that is alone."""

    shared: dict[int, dict[str, Cost]] = field(default_factory=dict)
    alone_agent_cpu_percent: dict[str, float] = field(default_factory=dict)


def measure(
    program: PgbouncerProgram, counts: Sequence[int], seconds: float, folder: Path, progress: Progress
) -> Costs:
    """Measure fleets of so many tasks, and one task that is alone. Raises RuntimeError without pgbench."""
    script = folder / "load.sql"
    script.write_text(f"select pg_sleep({HOLD_SECONDS}) as {LOAD};\n")
    costs = Costs()
    for tasks in counts:
        progress(f"cost: {tasks} tasks")
        terms = FleetTerms(tasks, slots=SLOTS_PER_TASK * tasks)
        with (
            running_database(terms.budget + 60) as database,
            watching(database) as watch,
            running_fleet(database, program, terms) as fleet,
        ):
            costs.shared[tasks] = {
                name: _phase(watch, fleet, pgbench_of(database), script, clients, seconds)
                for name, clients in _clients(terms).items()
            }
    progress("cost: a task that is alone")
    terms = FleetTerms(1, slots=SLOTS_PER_TASK)
    with (
        running_database(100) as database,
        watching(database) as watch,
        running_alone(database, program, [terms.floor + terms.slots]) as alone,
    ):
        for name, clients in _clients(terms).items():
            cost = _phase(watch, alone, pgbench_of(database), script, clients, seconds)
            costs.alone_agent_cpu_percent[name] = cost.agent_cpu_percent
    return costs


def _clients(terms: FleetTerms) -> dict[str, list[int]]:
    """Return how many clients each task has: below the floor, within the slots, more than all slots."""
    some = [terms.floor + SLOTS_PER_TASK - 2 if number % 2 == 0 else 1 for number in range(terms.tasks)]
    return {
        AWAKE: [1] * terms.tasks,
        STEADY: some,
        CONTENTION: [terms.floor + 2 * SLOTS_PER_TASK] * terms.tasks,
    }


def _phase(
    watch: Watch, fleet: RunningFleet, pgbench: str, script: Path, clients: Sequence[int], seconds: float
) -> Cost:
    statements = Statements(watch)
    with ExitStack() as stack:
        for task, count in zip(fleet.tasks, clients, strict=True):
            stack.enter_context(_load(pgbench, script, task, count, seconds + 2 * SETTLE_SECONDS))
        time.sleep(SETTLE_SECONDS)
        before, began = statements.read(), time.monotonic()
        agents_before = [task.agent_cpu_seconds() for task in fleet.tasks]
        time.sleep(seconds)
        agents = [task.agent_cpu_seconds() for task in fleet.tasks]
        took = time.monotonic() - began
        cost = statements.read().since(before, took, len(fleet.tasks))
    used = sum(agents) - sum(agents_before)
    return Cost(**{**vars(cost), "agent_cpu_percent": used / took / len(fleet.tasks) * 100})


@contextmanager
def _load(pgbench: str, script: Path, task: RunningTask, clients: int, seconds: float) -> Iterator[None]:
    """Hold `clients` connections of a task at work."""
    command = [pgbench, "--no-vacuum", f"--file={script}", f"--client={clients}", f"--time={round(seconds)}"]
    with subprocess.Popen(
        command, env=task.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        yield
        _, errors = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise RuntimeError(f"pgbench: {errors.strip()[-500:]}")
