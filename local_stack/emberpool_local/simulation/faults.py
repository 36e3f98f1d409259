"""What can happen to a simulated fleet, as data: a list that can be shrunk, printed and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Kinds of events of a plan. The value is the word in a time line."""

    DEMAND = "demand"  # `task` has `amount` environments from now on
    KILL_PGBOUNCER = "kill PgBouncer"  # process `amount` of `task`
    KILL_AGENT = "kill the agent"
    KILL_TASK = "kill the task"
    VANISH = "the task vanishes without FIN"
    CUT_CONTROL = "terminate the control connection"
    PARTITION = "partition between task and database"  # for `seconds`
    SLOW_AGENT = "slow agent"  # for `seconds`
    RESTART_DATABASE = "restart the database"  # away for `seconds`
    LOWER_MAX_CONNECTIONS = "lower max_connections"  # by `amount`, for `seconds`; restarts it
    OTHER_CLIENTS = "other clients come"  # `amount` of them, for `seconds`
    START_TASK = "start a task"  # its settings promise `amount` slots less than the others'
    STOP_TASK = "stop a task"  # SIGTERM: drain


@dataclass(frozen=True)
class Fault:
    """One event of a plan. `task` is taken modulo the tasks that live then."""

    at: float
    kind: Kind
    task: int = 0
    seconds: float = 0.0
    amount: int = 0

    def __str__(self) -> str:
        of = "" if self.kind in FLEET_WIDE else f" of task {self.task}"
        amount = f", {self.amount}" if self.amount else ""
        seconds = f", for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.at:7.3f} s  {self.kind.value}{of}{amount}{seconds}"


FLEET_WIDE = frozenset({Kind.RESTART_DATABASE, Kind.LOWER_MAX_CONNECTIONS, Kind.OTHER_CLIENTS, Kind.START_TASK})
# After these, locks or backends may stay until the database's keepalives have found out.
SILENT = frozenset({Kind.VANISH, Kind.PARTITION})
