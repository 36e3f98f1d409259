"""Hundreds of tasks and a burst: how soon the slots are where the clients are, how fair that is, and what it costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from emberpool_local.simulation.faults import Fault, Kind
from emberpool_local.simulation.plan import Plan
from emberpool_local.simulation.task import Task
from emberpool_local.simulation.world import World
from emberpool_proxy.agent.budget_share import fair_shares

BURST_AT_SECONDS = 15.0
BURST_TASKS = 0.1  # a tenth of the tasks get most of the environments: connections are balanced, load is not
BURST_ENVIRONMENTS = 0.9
CONVERGED = 0.9  # of the slots that the burst is due
CALM_SECONDS = 10.0  # the last of the run, in which the demand stays
LOOK_SECONDS = 0.1
TRANSACTION_SECONDS = (0.1, 0.5)
THINK_SECONDS = (0.0, 5.0)


@dataclass(frozen=True)
class ScaleResult:
    """What a large fleet did. Times in virtual seconds, rates per virtual second over the whole run."""

    seed: int
    tasks: int
    environments: int
    budget: int
    slots: int
    most_connections: int
    broken: str
    converged_seconds: float | None
    fairness: float  # Jain's index of what hungry tasks have of their fair share
    worst_task: float  # the least part of it
    slots_held: int
    moves: int
    moves_per_slot_and_minute_at_the_end: float
    views_per_second: float
    queries_per_second: float
    busiest_second_queries: int
    steps: int
    transactions: int
    events: int


def run_large(tasks: int, environments: int, seconds: float, seed: int, slots_each: int = 7) -> ScaleResult:
    """Run a fleet whose environments are spread evenly, and from a moment on are mostly at a tenth of the tasks."""
    return _LargeFleet(tasks, environments, seconds, seed, slots_each).run()


class _LargeFleet:
    def __init__(self, tasks: int, environments: int, seconds: float, seed: int, slots_each: int) -> None:
        self.seconds = max(seconds, BURST_AT_SECONDS + 5.0)
        self.environments = environments
        plain = Plan(
            seed,
            tasks=tasks,
            most_tasks=tasks,
            floor=1,
            slots=tasks * slots_each,
            transaction=TRANSACTION_SECONDS,
            longest_transaction=TRANSACTION_SECONDS[1],
            long_share=0.0,
            think=THINK_SECONDS,
            faults=self._even(tasks, environments),
            faults_seconds=self.seconds,
        )
        self.world = World(plain)
        self.hot: list[Task] = []
        self.converged_at: float | None = None
        self.busiest = 0
        self.calm_from = BURST_AT_SECONDS
        self.moves_before = 0
        self.had: Counter[int] = Counter()  # server connections of hungry tasks, summed over the looks at the end
        self.due: Counter[int] = Counter()

    @staticmethod
    def _even(tasks: int, environments: int) -> tuple[Fault, ...]:
        return tuple(
            Fault(0.01 * (task % 100), Kind.DEMAND, task, amount=environments // tasks // 4) for task in range(tasks)
        )

    def run(self) -> ScaleResult:
        world = self.world
        broken = world.run_until(BURST_AT_SECONDS)
        if not broken:
            self._burst()
            broken = self._watch()
        return self._result(broken)

    def _burst(self) -> None:
        tasks = self.world.alive
        self.hot = tasks[:: round(1 / BURST_TASKS)]
        hot_each = int(self.environments * BURST_ENVIRONMENTS / len(self.hot))
        cold_each = int(self.environments * (1 - BURST_ENVIRONMENTS) / max(1, len(tasks) - len(self.hot)))
        hot = set(map(id, self.hot))
        for task in tasks:
            task.serve(hot_each if id(task) in hot else cold_each)

    def _watch(self) -> str:
        world, queries = self.world, self.world.database.queries
        next_second = world.now + 1.0
        while world.now < self.seconds:
            if broken := world.run_until(world.now + LOOK_SECONDS):
                return broken
            if self.converged_at is None and self._hot_held() >= CONVERGED * self._hot_due():
                self.converged_at = world.now
            if world.now <= self.seconds - CALM_SECONDS:
                self.calm_from, self.moves_before = world.now, world.oracles.moves
            else:
                self._count_parts()
            if world.now >= next_second:
                self.busiest = max(self.busiest, world.database.queries - queries)
                queries, next_second = world.database.queries, world.now + 1.0
        return ""

    def _hot_held(self) -> int:
        return sum(max(0, task.servers - task.terms.floor) for task in self.hot)

    def _hot_due(self) -> int:
        shares = self._shares()
        return sum(shares[task.number] for task in self.hot)

    def _shares(self) -> dict[int, int]:
        """Return each task's fair share of the slots by what its clients could use now."""
        wants = {task.number: max(0, task.demand - task.terms.floor) for task in self.world.alive}
        return fair_shares(wants, self.world.plan.slots)

    def _count_parts(self) -> None:
        shares = self._shares()
        for task in self.world.alive:
            if shares[task.number]:
                self.had[task.number] += task.servers
                self.due[task.number] += task.terms.floor + shares[task.number]

    def _moves_at_the_end(self) -> float:
        seconds = self.world.now - self.calm_from
        return (
            (self.world.oracles.moves - self.moves_before) / self.world.plan.slots * 60 / seconds
            if seconds > 0
            else 0.0
        )

    def _result(self, broken: str) -> ScaleResult:
        world, database = self.world, self.world.database
        parts = [self.had[number] / due for number, due in self.due.items()]
        return ScaleResult(
            seed=world.plan.seed,
            tasks=world.plan.tasks,
            environments=self.environments,
            budget=world.plan.budget,
            slots=world.plan.slots,
            most_connections=world.oracles.most_connections,
            broken=broken,
            converged_seconds=None if self.converged_at is None else round(self.converged_at - BURST_AT_SECONDS, 2),
            fairness=jain(parts),
            worst_task=min(parts, default=1.0),
            slots_held=len(database.holders),
            moves=world.oracles.moves,
            moves_per_slot_and_minute_at_the_end=self._moves_at_the_end(),
            views_per_second=database.views / world.now,
            queries_per_second=database.queries / world.now,
            busiest_second_queries=self.busiest,
            steps=world.steps,
            transactions=world.served,
            events=world.clock.events,
        )


def jain(parts: list[float]) -> float:
    """Return Jain's fairness index: 1 if all have the same part, 1/n if one has all (Jain, Chiu, Hawe 1984)."""
    squares = sum(part * part for part in parts)
    return sum(parts) ** 2 / (len(parts) * squares) if squares else 1.0
