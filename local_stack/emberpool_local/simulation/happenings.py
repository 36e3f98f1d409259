"""What each fault of a plan does to a world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from emberpool_local.simulation.clock import Clock
from emberpool_local.simulation.database import Database
from emberpool_local.simulation.faults import FLEET_WIDE, Fault, Kind
from emberpool_local.simulation.task import Task

MOVED_SHARE_OF_NEW_TASK = 0.5  # of an equal share: environments reconnect to a new task one by one


class Fleet(Protocol):
    """The world, as faults change it."""

    clock: Clock
    database: Database

    @property
    def alive(self) -> list[Task]:
        """Tasks that take clients."""

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks that live, or that the database still has connections of."""

    def start_task(self, fewer_slots: int = 0) -> Task:
        """Start one more task."""

    def disturb(self, words: str) -> None:
        """Write a line into the time line, and have the oracles wait for the fleet to settle."""


def happen(fleet: Fleet, most_tasks: int, fault: Fault) -> None:
    """Let the fault happen, if there is a task that it can happen to."""
    alive = fleet.alive
    if fault.kind is Kind.START_TASK:
        if len(fleet.tasks) < most_tasks:
            _start(fleet, fault)
    elif fault.kind in FLEET_WIDE:
        fleet.disturb(str(fault)[11:].strip())
        _TO_DATABASE[fault.kind](fleet, fault)
    elif alive:
        task = alive[fault.task % len(alive)]
        if fault.kind in _ENDS_A_TASK and len(alive) == 1:
            return
        amount = f", {fault.amount}" if fault.amount else ""
        fleet.disturb(
            f"task {task.number}: {fault.kind.value}{amount}" + (f" for {fault.seconds} s" if fault.seconds else "")
        )
        _TO_TASK[fault.kind](fleet, task, fault)


def _start(fleet: Fleet, fault: Fault) -> None:
    before = fleet.alive
    task = fleet.start_task(fault.amount)
    fleet.disturb(f"task {task.number} starts" + (f", promised {fault.amount} slots less" if fault.amount else ""))
    for other in before:
        moved = int(other.environments * MOVED_SHARE_OF_NEW_TASK / (len(before) + 1))
        other.serve(other.environments - moved)
        task.serve(task.environments + moved)


def _move_clients(fleet: Fleet, task: Task) -> None:
    """Send the environments of a task that is going to the others."""
    others = [one for one in fleet.alive if one is not task]
    for index, other in enumerate(others):
        other.serve(other.environments + task.environments // len(others) + (index < task.environments % len(others)))


def _demand(_fleet: Fleet, task: Task, fault: Fault) -> None:
    task.serve(fault.amount)


def _kill_task(fleet: Fleet, task: Task, _fault: Fault) -> None:
    _move_clients(fleet, task)
    task.kill()


def _vanish(fleet: Fleet, task: Task, _fault: Fault) -> None:
    _move_clients(fleet, task)
    task.vanish()


def _stop(fleet: Fleet, task: Task, _fault: Fault) -> None:
    _move_clients(fleet, task)
    task.stop()


def _partition(fleet: Fleet, task: Task, fault: Fault) -> None:
    def heal() -> None:
        if task.is_partitioned and task.is_alive:
            fleet.disturb(f"task {task.number}: the partition ends")
            task.heal()

    task.partition()
    fleet.clock.after(fault.seconds, heal)


def _slow(fleet: Fleet, task: Task, fault: Fault) -> None:
    def recover() -> None:
        fleet.disturb(f"task {task.number}: its agent is quick again")
        task.is_slow = False

    task.is_slow = True
    fleet.clock.after(fault.seconds, recover)


def _restart_database(fleet: Fleet, fault: Fault) -> None:
    database = fleet.database
    database.restart()
    for task in fleet.tasks:
        task.database_restarted()

    def come_up() -> None:
        fleet.disturb("the database is up")
        database.is_up = True

    fleet.clock.after(fault.seconds, come_up)


def _lower_max_connections(fleet: Fleet, fault: Fault) -> None:
    database = fleet.database
    database.max_connections -= fault.amount

    def undo() -> None:
        fleet.disturb("max_connections is as before")
        database.max_connections += fault.amount

    fleet.clock.after(fault.seconds, undo)


def _others_come(fleet: Fleet, fault: Fault) -> None:
    database, incarnation = fleet.database, fleet.database.incarnation
    database.other_clients += fault.amount

    def leave() -> None:
        if incarnation == database.incarnation:
            fleet.disturb(f"{fault.amount} other clients leave")
            database.other_clients -= fault.amount

    fleet.clock.after(fault.seconds, leave)


_TO_DATABASE: dict[Kind, Callable[[Fleet, Fault], None]] = {
    Kind.RESTART_DATABASE: _restart_database,
    Kind.LOWER_MAX_CONNECTIONS: _lower_max_connections,
    Kind.OTHER_CLIENTS: _others_come,
}
_TO_TASK: dict[Kind, Callable[[Fleet, Task, Fault], None]] = {
    Kind.DEMAND: _demand,
    Kind.KILL_PGBOUNCER: lambda _fleet, task, fault: task.kill_pgbouncer(fault.amount),
    Kind.KILL_AGENT: lambda _fleet, task, _fault: task.kill_agent(),
    Kind.KILL_TASK: _kill_task,
    Kind.VANISH: _vanish,
    Kind.CUT_CONTROL: lambda _fleet, task, _fault: task.cut_control_connection(),
    Kind.PARTITION: _partition,
    Kind.SLOW_AGENT: _slow,
    Kind.STOP_TASK: _stop,
}
_ENDS_A_TASK = frozenset({Kind.KILL_TASK, Kind.VANISH, Kind.STOP_TASK})
