"""The terms of a fleet's connection budget and what follows from them, whether or not the sum holds.

Owns the arithmetic and the ranges; knows nothing of the CDK, so that it can be tested exhaustively.
"""

from __future__ import annotations

from dataclasses import dataclass

from emberpool_proxy.settings import AGENT_CONNECTIONS, RANGES, ProxySettings

# PostgreSQL keeps 3 for superusers, RDS keeps 2 for itself; the others are for psql at 3 a.m., migrations, monitoring.
RESERVED_CONNECTIONS = ProxySettings.reserved_connections
FLOOR_CONNECTIONS = ProxySettings.floor_connections
# Rolling deployments run at 200 percent: each old task lives until its successor is healthy.
DEPLOYMENT_SURGE = 2
# ECS's maximumPercent counts the tasks that are RUNNING or PENDING (its API reference, DeploymentConfiguration). One
# that is DEACTIVATING or STOPPING is not counted and yet has its connections, for the balancer's deregistration delay
# and the stop timeout: in a roll-back, or a deployment soon after another, three generations are alive.
STOPPING_GENERATIONS = 1
MOST_CONNECTIONS_OF_POSTGRESQL = 262_143
PROXY_RANGES = {name: (int(lowest), int(highest)) for name, lowest, highest in RANGES}


def least_floor(pools: int) -> int:
    """Return the least floor of a task with so many pools (PgBouncer processes x database entries).

    A PgBouncer that was killed starts with one connection a pool while the database still ends the ones before it, so
    that a task leaves `pools - 1` of its connections unused; each pool needs one at least.
    """
    return 2 * pools - 1


@dataclass(frozen=True)
class BudgetTerms:
    """The counts of one fleet before one database.

    Each task may always have its floor and `AGENT_CONNECTIONS` of its agent; what is left are shared slots, which go
    to the tasks whose clients wait. `surge` is the factor by which a rolling deployment multiplies the tasks,
    `stopping_generations` how often `max_tasks` may still be stopping beside those; `other_tasks` are those of other
    fleets that share the budget; `pools` are a task's.

    One task alone (`max_tasks` and `surge` 1, no stopping generation: whoever runs it stops it before the next one
    starts) needs no slots: its floor is the budget, without what its agent has.

    Raises ValueError for a count out of range.
    """

    max_connections: int
    min_tasks: int = 2
    max_tasks: int = 4
    reserved_connections: int = RESERVED_CONNECTIONS
    surge: int = DEPLOYMENT_SURGE
    floor_connections: int = FLOOR_CONNECTIONS
    stopping_generations: int = STOPPING_GENERATIONS
    other_tasks: int = 0
    pools: int = 1

    def __post_init__(self) -> None:
        self._check_counts()

    @property
    def budget(self) -> int:
        """Connections that the fleet may use in all: at most as many as the proxy's setting takes."""
        return min(self.max_connections - self.reserved_connections, PROXY_RANGES["max_server_connections"][1])

    @property
    def holds(self) -> bool:
        """Whether the floors of all tasks fit into the budget."""
        return self.needed <= self.budget

    @property
    def generations(self) -> int:
        """How often `max_tasks` can be alive at once."""
        return self.surge + self.stopping_generations

    @property
    def most_tasks_alive(self) -> int:
        """Tasks that are alive at the worst moment of a deployment at full scale, other fleets' included."""
        return self.max_tasks * self.generations + self.other_tasks

    @property
    def shares_budget(self) -> bool:
        """Whether there can be more than one task."""
        return self.most_tasks_alive > 1

    @property
    def floor(self) -> int:
        """Server connections that one task may always have."""
        return self.floor_connections if self.shares_budget else self.budget - AGENT_CONNECTIONS

    @property
    def least_per_task(self) -> int:
        """What one task takes from the budget at least, its agent's connections included."""
        return (self.floor_connections if self.shares_budget else least_floor(self.pools)) + AGENT_CONNECTIONS

    @property
    def needed(self) -> int:
        """The smallest budget that is enough for all tasks."""
        return self.most_tasks_alive * self.least_per_task

    @property
    def shared_slots(self) -> int:
        """Server connections that go to whoever needs them, above the floors.

        None is allowed: the invariant holds, each task serves with its floor, and the fleet is divided statically.
        """
        return self.budget - self.needed if self.shares_budget else 0

    @property
    def most_per_task(self) -> int:
        """Server connections of one task that holds every slot."""
        return self.floor + self.shared_slots - (self.pools - 1)

    @property
    def most_at_min_tasks(self) -> int:
        """Server connections of `min_tasks` tasks that hold all slots: what a fleet at rest can use at once."""
        return self.min_tasks * (self.floor - (self.pools - 1)) + self.shared_slots

    @property
    def share_at_min_tasks(self) -> int:
        """Server connections of each of `min_tasks` tasks when all of them have waiting clients."""
        return self.most_at_min_tasks // self.min_tasks

    @property
    def most_connections(self) -> int:
        """Connections of the whole fleet at its largest; never above `budget`."""
        return self.most_tasks_alive * (self.floor + AGENT_CONNECTIONS) + self.shared_slots

    @property
    def max_server_connections(self) -> int:
        """What each task is told: the budget; to one that is alone, its own limit."""
        return self.budget if self.shares_budget else self.floor

    def _check_counts(self) -> None:
        _check_range("max_connections", self.max_connections, 1, MOST_CONNECTIONS_OF_POSTGRESQL)
        _check_range("reserved_connections", self.reserved_connections, *PROXY_RANGES["reserved_connections"])
        _check_range("surge", self.surge, 1, 10)
        _check_range("stopping_generations", self.stopping_generations, 0, 10)
        most_alive = PROXY_RANGES["most_tasks_alive"][1]
        _check_range("other_tasks", self.other_tasks, 0, most_alive - self.generations)
        most_tasks = (most_alive - self.other_tasks) // self.generations
        _check_range("min_tasks", self.min_tasks, 1, most_tasks)
        _check_range("max_tasks", self.max_tasks, self.min_tasks, most_tasks)
        _check_range("pools", self.pools, 1, 100)
        _check_range("floor_connections", self.floor_connections, *PROXY_RANGES["floor_connections"])
        least = least_floor(self.pools)
        if self.shares_budget and self.floor_connections < least:
            raise ValueError(
                f"floor_connections must be at least {least} for the {self.pools} pools of a task (PgBouncer processes "
                f"x database entries): 2 x {self.pools} - 1, got {self.floor_connections}"
            )


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, got {value}")
