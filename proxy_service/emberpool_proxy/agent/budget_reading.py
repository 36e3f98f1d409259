"""What the budget knows at one moment: this task's pools and slots, and what the database says of the whole fleet.

Frozen data between slots and budget_limits, which read, and decide, which is pure. A *slot* is the right to one server
connection above the floor; its number is that of an advisory lock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """One pool: an entry of [databases] in one PgBouncer process."""

    process: int
    entry: str


@dataclass(frozen=True, slots=True)
class PoolUse:
    """One pool, seen after `limit` was in force: no login began since that would exceed it."""

    limit: int  # server connections that PgBouncer may open
    servers: int  # open or being opened
    busy: int  # of those: at work for a client
    waiting: int  # clients without a server connection
    max_wait_seconds: float = 0.0  # of the client at the head of the line
    is_settling: bool = False  # its PgBouncer has just started again: backends of the one before may linger


@dataclass(frozen=True, slots=True)
class Session:
    """Another task as pg_locks shows it: its control connection's backend, slots, floor, and what it lacks."""

    process_id: int
    slots: int = 0
    floor: int = 0
    missing: int = 0  # connections that it could use beyond what it has; 0: it is not hungry


@dataclass(frozen=True, slots=True)
class FleetView:
    """The database's answer about the fleet, all of it of one moment. `at` is monotonic seconds of this machine."""

    at: float
    own: Session
    others: tuple[Session, ...]
    free: tuple[int, ...]  # numbers of slots below `slots` that nobody holds
    slots: int  # how many slots there are for all now: as promised, or fewer (see the two fields below)
    pool_connections: int  # server connections of all tasks, as pg_stat_activity counts them; no agent's
    promised_slots: int  # what this task's settings say
    smallest_claim: int  # the least that any task's settings say: two deployments of one name disagree when it is less
    database_has_room_for: int  # slots that fit below the database's own limit now
    least_room_for: int = 0  # the same with `reserved_connections` alone; below 0: not even the floors fit
    # Server connections of other tasks above what each may have, where the database shows whose they are (by address).
    # None: it does not, and the sum of all is all that is known: what one may have and has not opened hides another's.
    others_excess: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that decide.step needs. `held` is empty as soon as the control connection is lost."""

    now: float
    pools: dict[PoolKey, PoolUse]
    held: frozenset[int] = frozenset()
    lingering: int = 0  # backends of a PgBouncer that has just died may be so many; part of what this task may use
    is_connected: bool = False  # there is a control connection
    is_draining: bool = False
    fleet: FleetView | None = None  # the last one of this control connection; None before the first
    taken_now: int | None = None  # how many of the slots that were asked for in the step before were got
    is_anybody_hungry: bool | None = None  # the answer to Decision.wants_hunger; None: it was not asked
