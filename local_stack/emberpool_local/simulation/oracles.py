"""What must be true of a simulated fleet at every moment, or within a bound. A broken promise ends the run.

Owns the promises; what they are looked at with (`Fleet`) is the world's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from emberpool_local.simulation.database import Database
from emberpool_local.simulation.task import Task

LOOK_SECONDS = 0.25
MOST_SHOWN = 12
# A session that has just ended: its agent has 0.25 s to lower its limits, and logins under way then are counted.
GRACE_SECONDS = 0.35
FAIR_PART = 0.6  # of the exact share: hunger is published in steps of 25%, demand is the maximum over seconds
STARVED_SECONDS = 3.0  # beyond the longest transaction
LOOKS_SECONDS = 0.05  # for each task: two looks at the fleet, of which all tasks together make 50 a second
SETTLED_SECONDS = 6.0  # a fleet where everybody is hungry holds all slots, beyond the longest transaction
MOVES_PER_SLOT_AND_MINUTE = 6.0


class PromiseBroken(Exception):  # noqa: N818 (the finding of a run)
    """A promise of the budget was broken; the message says which, with the figures."""


class Fleet(Protocol):
    """What the oracles look at."""

    database: Database
    all_slots: int  # by the largest claim
    budget: int
    pools_budget: int  # without what the agents may have
    longest_transaction: float

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks that live, or that the database still has connections of."""

    @property
    def now(self) -> float:
        """Virtual time."""


@dataclass
class Oracles:
    """The promises. `undisturbed_since` is the world's to set: when the last fault, or its end, was."""

    fleet: Fleet
    undisturbed_since: float = 0.0
    most_connections: int = 0
    moves: int = 0
    short_since: dict[int, float] = field(default_factory=dict)
    longest_short_seconds: float = 0.0

    def check_growth(self) -> None:
        """Compare all connections of the fleet with its budget. For every new connection."""
        fleet, database = self.fleet, self.fleet.database
        seen, pools = database.our_connections, database.pool_backends
        self.most_connections = max(self.most_connections, seen)
        if seen <= fleet.budget and pools <= fleet.pools_budget:
            return
        spare = sum(task.has_dead_pgbouncer for task in fleet.tasks)  # starts with 1, while backends of old end
        if seen > fleet.budget or pools > fleet.pools_budget + spare:
            by_task = {
                task.number: f"{task.backends} of {task.terms.floor}+{task.slots_locked}" for task in fleet.tasks
            }
            raise PromiseBroken(
                f"budget: {pools} server connections of at most {fleet.pools_budget} for the pools, with "
                f"{len(database.sessions)} control connections and {database.agent_logins} logins of agents {seen} of "
                f"at most {fleet.budget}; server connections by task: {by_task}"
            )

    def check_task_growth(self, task: Task) -> None:
        """Compare a task's server connections with what it holds. For every new server connection.

        Without an agent, or when the notice is lost in a partition, nobody lowers the limits of a task that loses its
        slots: the fleet's budget is what counts then.
        """
        now = self.fleet.now
        if task.is_unaware:
            return
        may = task.terms.floor + task.slots_locked + task.has_dead_pgbouncer
        if task.backends <= may or now - max(task.lost_at, task.agent_since) < GRACE_SECONDS:
            return
        raise PromiseBroken(
            f"entitlement: task {task.number} has {task.backends} server connections, but floor {task.terms.floor} + "
            f"{task.slots_locked} slots"
        )

    def check_given(self, task: Task) -> None:
        """Compare a task's server connections with what it still holds. For each time that it gives back."""
        may = task.terms.floor + task.slots_locked + task.has_dead_pgbouncer
        if task.backends > may:
            raise PromiseBroken(
                f"given too early: task {task.number} has {task.backends} server connections, but floor "
                f"{task.terms.floor} + {task.slots_locked} slots"
            )

    def check_fairness(self) -> None:
        """Find tasks that have been short of their fair share for too long."""
        now, fleet = self.fleet.now, self.fleet
        reachable = [task for task in fleet.tasks if _can_take_part(task)]
        held = {task.number: task.slots_locked for task in reachable}
        database = fleet.database
        if len(database.holders) > sum(held.values()):
            self.undisturbed_since = now  # of a task that is gone or cut off: fair again when its session has ended
        available = min(fleet.all_slots, database.smallest_claim, database.room)
        weights = {task.number: max(0, task.demand - task.terms.floor) for task in reachable}
        total = sum(weights.values())
        for task in reachable:
            share = available * weights[task.number] / total if total > available else weights[task.number]
            is_short = task.waiting > 0 and held[task.number] < FAIR_PART * share - 1
            if not is_short:
                self.short_since.pop(task.number, None)
                continue
            since = max(self.short_since.setdefault(task.number, now), self.undisturbed_since)
            self.longest_short_seconds = max(self.longest_short_seconds, now - since)
            if now - since > fleet.longest_transaction + STARVED_SECONDS + LOOKS_SECONDS * len(reachable):
                raise PromiseBroken(
                    f"starvation: task {task.number} holds {held[task.number]} slots, its share of {available} is "
                    f"{share:.1f}, for {now - since:.1f} s; slots {_few(held)}, demand {_few(weights)}"
                )

    def slots_not_held(self) -> int:
        """Return how many slots nobody holds, or somebody holds though they exist no more."""
        database = self.fleet.database
        slots = min(self.fleet.all_slots, database.smallest_claim, database.room)
        lawful = sum(number < slots for number in database.holders)
        return slots - lawful + (len(database.holders) - lawful)

    def check_all_held(self, fewest_not_held: int) -> None:
        """All slots were held at one moment of a while in which everybody has been hungry."""
        if fewest_not_held:
            holders = {number: one.task for number, one in sorted(self.fleet.database.holders.items())}
            raise PromiseBroken(f"lost slots: all tasks are hungry, but {fewest_not_held} slots stay free: {holders}")

    def check_calm(self, moves: int, seconds: float) -> None:
        """Slots do not flap while the demand stays."""
        bound = max(2.0, MOVES_PER_SLOT_AND_MINUTE * self.fleet.all_slots * seconds / 60)
        if moves > bound:
            raise PromiseBroken(
                f"flapping: {moves} moves of {self.fleet.all_slots} slots in {seconds:.1f} s, bound {bound:.1f}"
            )

    def check_idle(self) -> None:
        """Find what an idle fleet still has: no slot, and no connection, is promised."""
        database = self.fleet.database
        if database.holders or database.sessions or database.pool_backends:
            raise PromiseBroken(
                f"idle: a fleet without clients has {len(database.holders)} slots, {len(database.sessions)} control "
                f"connections and {database.pool_backends} server connections"
            )


def _few(numbers: dict[int, int]) -> str:
    """Return what fits a line."""
    shown = dict(list(numbers.items())[:MOST_SHOWN])
    return f"{shown}" if len(shown) == len(numbers) else f"{shown} and of {len(numbers) - len(shown)} more"


def _can_take_part(task: Task) -> bool:
    return task.is_alive and task.agent is not None and not task.is_partitioned and not task.is_draining
