"""A fleet of the real decide.step in virtual time, with PgBouncers and a database that answer at once.

What may go wrong between a decision and its effect is the business of the simulation; here it is about where the
decisions lead to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from emberpool_proxy.agent.budget_reading import FleetView, PoolKey, PoolUse, Reading, Session
from emberpool_proxy.agent.decide import Decision, State, Terms, step

SHORTEST_STEP_SECONDS = 0.005


@dataclass
class Task:
    """One task: its pools, what it holds, and when it looks again."""

    process_id: int
    state: State
    next_at: float
    demands: dict[PoolKey, int]
    limits: dict[PoolKey, int]
    servers: dict[PoolKey, int]
    held: frozenset[int] = frozenset()
    is_connected: bool = False
    is_hung: bool = False
    fleet: FleetView | None = None
    taken_now: int | None = None
    missing: int = 0
    decision: Decision = field(default_factory=lambda: Decision({}))
    looks: int = 0  # at the database
    views: int = 0  # of those that read all of the fleet
    reloads: int = 0

    @property
    def in_use(self) -> int:
        """Connections that PgBouncer has or may open."""
        return sum(max(self.limits[key], self.servers[key]) for key in self.limits)


@dataclass
class DecidedFleet:
    """`tasks` tasks that share `slots` slots. The demand of each pool varies by `noise` (a fraction) at each look."""

    slots: int
    tasks: list[Task]
    chance: random.Random
    noise: float = 0.0
    now: float = 0.0
    moves: int = 0  # slots taken or given

    @classmethod
    def of(cls, tasks: int, slots: int, *, floor: int = 2, pools: int = 1, noise: float = 0.0) -> DecidedFleet:
        """Return a fleet whose clients have not come yet."""
        chance = random.Random(tasks * 1000 + slots)
        terms = Terms(floor, slots, pools, most_tasks_alive=tasks)
        keys = [PoolKey(0, f"entry{number}") for number in range(pools)]
        members = [
            Task(
                process_id=100 + number,
                state=State(terms, seed=number),
                next_at=chance.random(),
                demands=dict.fromkeys(keys, 0),
                limits=dict.fromkeys(keys, 1),
                servers=dict.fromkeys(keys, 0),
            )
            for number in range(tasks)
        ]
        return cls(slots, members, chance, noise)

    @property
    def held(self) -> list[int]:
        """How many slots each task has."""
        return [len(task.held) for task in self.tasks]

    @property
    def free(self) -> tuple[int, ...]:
        """The numbers that nobody has."""
        return tuple(sorted(set(range(self.slots)).difference(*(task.held for task in self.tasks))))

    def demand(self, *demands: int | Sequence[int]) -> None:
        """Set what the clients of each task want; of its first pool, or of each."""
        for task, demand in zip(self.tasks, demands, strict=True):
            of_pools = [demand, *[0] * (len(task.demands) - 1)] if isinstance(demand, int) else demand
            task.demands = dict(zip(task.demands, of_pools, strict=True))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (task := min(self.tasks, key=lambda task: task.next_at)).next_at < end:
            self.now = max(self.now, task.next_at)
            if task.is_hung:
                task.next_at = self.now + 1.0
            else:
                self._turn(task)
        self.now = end

    def _turn(self, task: Task) -> None:
        is_anybody_hungry = self._look(task)
        reading = Reading(
            now=self.now,
            pools={key: self._serve(task, key) for key in task.limits},
            held=task.held,
            is_connected=task.is_connected,
            fleet=task.fleet,
            taken_now=task.taken_now,
            is_anybody_hungry=is_anybody_hungry,
        )
        task.state, task.decision = step(task.state, reading)
        self._act(task, task.decision)
        task.next_at = self.now + max(task.decision.wait_seconds, SHORTEST_STEP_SECONDS)

    def _look(self, task: Task) -> bool | None:
        if not task.is_connected:
            return None
        task.looks += task.decision.wants_fleet or task.decision.wants_hunger
        task.views += task.decision.wants_fleet
        if task.decision.wants_fleet:
            task.fleet = self._view(task)
        if task.decision.wants_hunger:
            return any(other.missing for other in self.tasks if other is not task)
        return None

    def _view(self, task: Task) -> FleetView:
        sessions = {
            other.process_id: Session(other.process_id, len(other.held), other.state.terms.floor, other.missing)
            for other in self.tasks
            if other.is_connected
        }
        own = sessions.pop(task.process_id)
        count = sum(sum(other.servers.values()) for other in self.tasks)
        return FleetView(
            self.now, own, tuple(sessions.values()), self.free, self.slots, count, self.slots, self.slots, self.slots
        )

    def _serve(self, task: Task, key: PoolKey) -> PoolUse:
        demand = round(task.demands[key] * self.chance.uniform(1 - self.noise, 1 + self.noise))
        task.servers[key] = max(task.servers[key], min(task.limits[key], demand))
        busy = min(task.servers[key], demand)
        return PoolUse(task.limits[key], task.servers[key], busy, demand - busy, 0.1 if demand > busy else 0.0)

    def _act(self, task: Task, decision: Decision) -> None:
        task.reloads += decision.limits != task.limits
        task.limits = decision.limits
        for key in decision.shrink:
            task.servers[key] = min(task.servers[key], task.limits[key])
        taken = frozenset([number for number in decision.take if number in self.free][: decision.take_count])
        assert decision.give <= task.held
        task.held = task.held - decision.give | taken
        task.taken_now = len(taken) if decision.take_count else None
        self.moves += len(decision.give) + len(taken)
        assert task.in_use <= task.state.terms.pools_floor + len(task.held)
        task.missing = decision.missing if task.is_connected else 0
        task.is_connected = decision.wants_connection
        if not task.is_connected:
            assert not task.held
            task.fleet = None
