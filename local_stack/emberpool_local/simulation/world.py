"""A simulated fleet: tasks, their database, and a plan of what happens to them, under the oracles.

`run` is the way in. The world's parts: `clock` (events), `database`, `task` with `agent_model`, `coordination_model`
and `pgbouncer_model`, `clients`, `faults` and `plan`, `oracles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from emberpool_local.simulation.agent_model import Step
from emberpool_local.simulation.clock import Clock, Delays, Process
from emberpool_local.simulation.database import AGENT_CONNECTIONS, ControlSession, Database
from emberpool_local.simulation.faults import Fault
from emberpool_local.simulation.happenings import happen
from emberpool_local.simulation.oracles import LOOK_SECONDS, SETTLED_SECONDS, Oracles, PromiseBroken
from emberpool_local.simulation.plan import Plan
from emberpool_local.simulation.task import Shape, Task
from emberpool_proxy.agent import decide
from emberpool_proxy.agent.decide import Terms

MOVING_SECONDS = 2.0  # a slot may be on its way from one task to another
LONG_TRANSACTION_FROM = 0.3
ENOUGH_FOR_ALL = 3  # environments of one task for each connection: they think half of the time
LONGEST_LINE_SECONDS = 300.0
QUIET_SECONDS = 16.0  # demand counts for ten seconds after the last client, and PgBouncer closes idle servers then


@dataclass(frozen=True)
class Outcome:
    """What a world came to. `broken` is empty if all promises were kept."""

    plan: Plan
    broken: str
    broken_at: float
    time_line: tuple[str, ...]
    events: int
    steps: int
    served: int
    moves: int
    most_connections: int
    longest_short_seconds: float

    @property
    def promise(self) -> str:
        """The name of the broken promise; empty if none was broken."""
        return self.broken.partition(":")[0]

    def __str__(self) -> str:
        lines = (str(self.plan), *self.time_line)
        if self.broken:
            lines += (f"{self.broken_at:7.3f} s  BROKEN {self.broken}",)
        return "\n".join(lines)


def run(plan: Plan, step: Step = decide.step) -> Outcome:
    """Run one world to its end, or to the first broken promise."""
    return World(plan, step).run()


class World:
    """One fleet and its database."""

    def __init__(self, plan: Plan, step: Step = decide.step) -> None:
        self.plan = plan
        self.clock = Clock()
        self.budget = plan.budget
        self.pools_budget = plan.budget - AGENT_CONNECTIONS * plan.most_tasks
        self.all_slots = plan.slots
        self.longest_transaction = max(plan.longest_transaction, plan.transaction[1])
        self.time_line: list[str] = []
        self._random = Random(plan.seed)  # noqa: S311 (a reproducible world)
        self._step = step
        self._ever: list[Task] = []
        self._present: list[Task] = []
        self.oracles = Oracles(self)
        self.database = Database(
            self.clock,
            max_connections=plan.budget + plan.spare_connections + 3,
            reserved_connections=plan.spare_connections,
            most_tasks=plan.most_tasks,
            floor=plan.floor,
            others_excess=self._others_excess,
            on_growth=self.oracles.check_growth,
            on_move=self._count_move,
        )
        for _ in range(plan.tasks):
            self.start_task()
        for fault in plan.faults:
            self.clock.after(fault.at, self._happen, fault)
        Process(self.clock, self._look())

    # What the oracles look at

    @property
    def now(self) -> float:
        """Virtual time."""
        return self.clock.now

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks that live, or that the database still has connections of."""
        return self._present

    @property
    def alive(self) -> list[Task]:
        """Tasks that take clients."""
        return [task for task in self._present if task.is_alive and not task.is_draining]

    @property
    def steps(self) -> int:
        """Decisions of the agents that live."""
        return sum(task.steps for task in self._ever)

    @property
    def served(self) -> int:
        """Transactions of all tasks."""
        return sum(pool.served for task in self._ever for pool in task.pools.values())

    # The run

    def run_until(self, until: float) -> str:
        """Run up to that moment; return the promise that was broken, empty if none was."""
        try:
            self.clock.run(until)
        except PromiseBroken as error:
            return str(error)
        return ""

    def run(self) -> Outcome:
        """Run to the end, or to the first broken promise."""
        broken, plan, oracles = "", self.plan, self.oracles
        try:
            self.clock.run(plan.faults_seconds)
            self._note("all faults are over; everybody is hungry")
            self._everybody_hungry()
            oracles.undisturbed_since = plan.steady_from
            self.clock.run(max(plan.steady_from + SETTLED_SECONDS + self.longest_transaction, self.now))
            oracles.check_all_held(self._fewest_not_held())
            since, moves = self.now, oracles.moves
            self.clock.run(plan.quiet_from)
            oracles.check_calm(oracles.moves - moves, self.now - since)
            self._note("all clients leave")
            for task in self.alive:
                task.serve(0)
            self._serve_all()
            self.clock.run(self.now + QUIET_SECONDS)
            oracles.check_idle()
        except PromiseBroken as error:
            broken = str(error)
        return self._outcome(broken)

    def _outcome(self, broken: str) -> Outcome:
        return Outcome(
            plan=self.plan,
            broken=broken,
            broken_at=self.now,
            time_line=tuple(self.time_line),
            events=self.clock.events,
            steps=self.steps,
            served=self.served,
            moves=self.oracles.moves,
            most_connections=self.oracles.most_connections,
            longest_short_seconds=self.oracles.longest_short_seconds,
        )

    def _fewest_not_held(self) -> int:
        until, fewest = self.now + MOVING_SECONDS, self.oracles.slots_not_held()
        while fewest and self.now < until:
            self.clock.run(self.now + LOOK_SECONDS)
            fewest = min(fewest, self.oracles.slots_not_held())
        return fewest

    def _serve_all(self) -> None:
        until = self.now + LONGEST_LINE_SECONDS
        while any(task.demand for task in self.alive):
            if self.now > until:
                raise PromiseBroken("unserved: clients that wait in line are never served")
            self.clock.run(self.now + LOOK_SECONDS)

    def _everybody_hungry(self) -> None:
        for task in self._present:
            task.is_slow = False
            task.heal()
        for task in self.alive:
            task.serve(max(self.plan.environments, ENOUGH_FOR_ALL * self.plan.budget))

    def _look(self) -> Delays:
        while True:
            yield LOOK_SECONDS
            self._present = [task for task in self._present if task.is_alive or task.backends or task.has_session]
            self.oracles.check_fairness()

    def _others_excess(self, asking: int) -> int | None:
        """Return what pg_stat_activity tells by address: each task has one of its own."""
        if not self.plan.shows_addresses:
            return None
        return sum(
            max(0, task.backends - task.terms.floor - task.slots_locked)
            for task in self._present
            if task.number != asking
        )

    def _count_move(self, session: ControlSession, slots: int) -> None:
        self.oracles.moves += max(0, slots)
        if slots < 0 and session.is_alive:
            self.oracles.check_given(self._ever[session.task])

    def _happen(self, fault: Fault) -> None:
        happen(self, self.plan.most_tasks, fault)

    def disturb(self, words: str) -> None:
        """Write a line into the time line, and have the oracles wait for the fleet to settle."""
        self.oracles.undisturbed_since = self.now
        self._note(words)

    def _note(self, words: str) -> None:
        self.time_line.append(f"{self.now:7.3f} s  {words}")

    def _transaction_seconds(self) -> float:
        plan, random = self.plan, self._random
        if plan.long_share and random.random() < plan.long_share:
            return random.uniform(LONG_TRANSACTION_FROM, plan.longest_transaction)
        low, high = plan.transaction
        return low + (high - low) * random.random()

    def start_task(self, fewer_slots: int = 0) -> Task:
        """Start one more task, whose settings promise so many slots fewer."""
        plan = self.plan
        shape = Shape(
            Terms(plan.floor, max(1, plan.slots - fewer_slots), most_tasks_alive=plan.most_tasks),
            plan.processes,
            plan.entries,
            plan.think,
        )
        task = Task(
            number=len(self._ever),
            shape=shape,
            clock=self.clock,
            random=self._random,
            timing=plan.timing,
            database=self.database,
            step=self._step,
            transaction_seconds=self._transaction_seconds,
            on_growth=self.oracles.check_task_growth,
        )
        self._ever.append(task)
        self._present.append(task)
        return task
