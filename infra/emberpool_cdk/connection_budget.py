"""The proof that the fleet cannot exceed the database's connection limit.

Owns the sum and its rendering; knows nothing of the CDK, so that it can be tested exhaustively. First form: every
task gets the same fixed share, and shares are small enough for a rolling deployment.
"""

from __future__ import annotations

from dataclasses import dataclass

# PostgreSQL keeps 3 for superusers, RDS keeps 2 for itself; 10 are for psql at 3 a.m., migrations and monitoring.
RESERVED_CONNECTIONS = 15
# Rolling deployments run at 200 percent: each old task lives until its successor is healthy.
DEPLOYMENT_SURGE = 2


class BudgetExceeded(ValueError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The fleet would need more connections than the database allows: the message shows the sum and three ways out."""


@dataclass(frozen=True)
class ConnectionBudget:
    """Divides a database's connections among the most tasks that can be alive at once.

    All fields are counts; `surge` is the factor by which a rolling deployment multiplies the tasks. Guarantees
    `per_task * most_tasks_alive <= max_connections - reserved_connections` with at least one connection per task.
    Tasks that still stop from the deployment *before* are not counted: do not start a deployment until the last
    one has drained (two minutes).

    Raises BudgetExceeded when no share is left, and ValueError for a count out of range.
    """

    max_connections: int
    min_tasks: int = 2
    max_tasks: int = 4
    reserved_connections: int = RESERVED_CONNECTIONS
    surge: int = DEPLOYMENT_SURGE

    def __post_init__(self) -> None:
        _check_range("max_connections", self.max_connections, 1, 262_143)  # PostgreSQL's own upper limit
        _check_range("reserved_connections", self.reserved_connections, 0, 262_143)
        _check_range("min_tasks", self.min_tasks, 1, 1000)
        _check_range("max_tasks", self.max_tasks, self.min_tasks, 1000)
        _check_range("surge", self.surge, 1, 10)
        if self.per_task < 1:
            raise BudgetExceeded(self._exceeded())

    @property
    def available(self) -> int:
        """Connections that the fleet may use in all."""
        return self.max_connections - self.reserved_connections

    @property
    def most_tasks_alive(self) -> int:
        """Tasks that run side by side in the middle of a deployment at full scale."""
        return self.max_tasks * self.surge

    @property
    def per_task(self) -> int:
        """Server connections that one task may open."""
        return self.available // self.most_tasks_alive

    @property
    def most_connections(self) -> int:
        """Server connections of the whole fleet at its largest; never above `available`."""
        return self.per_task * self.most_tasks_alive

    def as_metadata(self) -> dict[str, int]:
        """Return every term of the sum, for the template's metadata."""
        return {
            "MaxConnections": self.max_connections,
            "ReservedConnections": self.reserved_connections,
            "MinTasks": self.min_tasks,
            "MaxTasks": self.max_tasks,
            "MostTasksAlive": self.most_tasks_alive,
            "ConnectionsPerTask": self.per_task,
            "MostConnections": self.most_connections,
        }

    def as_table(self) -> str:
        """Return the sum as a small table of text, for the terminal."""
        rows = [
            ("max_connections of the database", f"{self.max_connections}"),
            ("reserved (superuser, RDS, operators, migrations)", f"-{self.reserved_connections}"),
            ("for the pool", f"{self.available}"),
            (f"most tasks alive ({self.max_tasks} x {self.surge} while deploying)", f"{self.most_tasks_alive}"),
            ("server connections per task", f"{self.per_task}"),
            ("most server connections ever", f"{self.most_connections}"),
        ]
        wide = max(len(label) for label, _ in rows)
        body = [f"  {label:<{wide}}  {value:>6}" for label, value in rows]
        verdict = f"  {self.most_connections} <= {self.available}: the limit holds, deployments included"
        return "\n".join(["Connection budget", *body, verdict])

    def _exceeded(self) -> str:
        needed = self.most_tasks_alive + self.reserved_connections
        fitting = max(self.available // self.surge, 0)
        tasks = f"run at most {fitting} tasks" if fitting else "run fewer tasks, which alone does not help here"
        return (
            "the connection budget is exceeded: "
            f"max_connections {self.max_connections} - reserved {self.reserved_connections} = {self.available} "
            f"for the pool, but {self.max_tasks} tasks x {self.surge} (old and new while deploying) = "
            f"{self.most_tasks_alive} tasks need at least one connection each. Three ways out: "
            f"(1) raise the database's max_connections to {needed} or more; "
            f"(2) {tasks}; "
            f"(3) reserve fewer connections than {self.reserved_connections}"
        )


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, got {value}")
