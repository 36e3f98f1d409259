"""How this task stands with the fleet's budget, as of the last step of the loop: for metrics, /status and /fleet.

Owns what is told and how it follows from a step. Plain data; who words it is telemetry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from emberpool_proxy.agent.budget_reading import FleetView, Reading
from emberpool_proxy.agent.decide import Decision
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.readings import Reading as Tick
from emberpool_proxy.telemetry.readings import longest_wait

# alone: shares no budget. asleep: nobody works, so that it needs no control connection. floor: it holds no slot.
# sharing: it holds slots. lost: it has no control connection and wants one, so it serves with its floor.
BudgetState = Literal["alone", "asleep", "floor", "sharing", "lost"]
MILLISECOND = 3  # decimals of a second


class Counted(Protocol):
    """What is counted since the agent started."""

    slots_taken: int
    slots_given: int
    times_lost: int


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """One task and what it last knew of its fleet. Counts are of connections; None: it has not been told."""

    state: BudgetState
    budget: int  # max_server_connections: of the task that is alone, or of the fleet with its agents' own
    floor: int  # server connections that need no slot
    limit: int  # sum of the limits in force in its PgBouncers
    slots_held: int = 0
    servers: int = 0  # server connections, those being opened included
    busy: int = 0  # of those: at work for a client
    waiting: int = 0  # clients without a server connection
    missing: int = 0  # connections that it could use beyond what it has
    longest_wait_seconds: float = 0.0
    is_connected: bool = False  # it has its control connection
    slots_promised: int = 0  # by this task's settings, for the whole fleet
    slots: int | None = None  # for the whole fleet now: as promised, or fewer
    slots_free: int | None = None
    tasks: int | None = None  # with a control connection, this one included
    pool_connections: int | None = None  # server connections of the whole fleet, as the database counts them
    claim_conflict: int | None = None  # the fewest slots that any task's settings promise, when fewer than this one's
    short_by: int = 0  # slots promised that the database has no room for
    excess: int = 0  # server connections above what all tasks may have: of one that is gone, or of somebody else
    slots_taken: int = 0  # since the agent started
    slots_given: int = 0
    times_lost: int = 0  # its control connection was

    @classmethod
    def of(
        cls, settings: ProxySettings, reading: Reading, decision: Decision, counted: Counted | None = None
    ) -> BudgetStatus:
        """Return the status after a step; `counted` is None for a task that is alone."""
        pools = reading.pools.values()
        return cls(
            state=_state(settings, reading, decision),
            budget=settings.max_server_connections,
            floor=settings.floor,
            limit=sum(pool.limit for pool in pools),
            slots_held=len(reading.held),
            servers=sum(pool.servers for pool in pools),
            busy=sum(pool.busy for pool in pools),
            waiting=sum(pool.waiting for pool in pools),
            missing=decision.missing,
            longest_wait_seconds=max((pool.max_wait_seconds for pool in pools), default=0.0),
            is_connected=reading.is_connected,
            slots_promised=settings.shared_slots,
            slots_taken=counted.slots_taken if counted else 0,
            slots_given=counted.slots_given if counted else 0,
            times_lost=counted.times_lost if counted else 0,
            # Without the connection it is old, and the fleet has changed since.
            **(_of_the_fleet(settings, reading.fleet) if reading.fleet and reading.is_connected else {}),
        )

    @classmethod
    def before_the_first_step(cls, settings: ProxySettings, ticks: Iterable[Tick]) -> BudgetStatus:
        """Return what is known without the loop: the settings and PgBouncer's last readings."""
        seen = tuple(ticks)
        return cls(
            state="floor" if settings.shares_budget else "alone",
            budget=settings.max_server_connections,
            floor=settings.floor,
            limit=settings.floor,
            servers=sum(tick.server_connections for tick in seen),
            busy=sum(tick.clients_active for tick in seen),
            waiting=sum(tick.clients_waiting for tick in seen),
            longest_wait_seconds=longest_wait(seen),
            slots_promised=settings.shared_slots,
        )

    @property
    def granted(self) -> int:
        """Server connections that this task may have now."""
        return self.floor + self.slots_held

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "longest_wait_seconds": round(self.longest_wait_seconds, MILLISECOND)}


def _state(settings: ProxySettings, reading: Reading, decision: Decision) -> BudgetState:
    if not settings.shares_budget:
        return "alone"
    if not reading.is_connected:
        return "lost" if decision.wants_connection else "asleep"
    return "sharing" if reading.held else "floor"


def _of_the_fleet(settings: ProxySettings, view: FleetView) -> dict[str, Any]:
    sessions = (view.own, *view.others)
    granted = sum(session.floor + session.slots for session in sessions)
    # Who has no control connection may still have its floor.
    granted += max(settings.most_tasks_alive - len(sessions), 0) * settings.floor
    return {
        "slots": view.slots,
        "slots_free": len(view.free),
        "tasks": len(sessions),
        "pool_connections": view.pool_connections,
        "claim_conflict": view.smallest_claim if view.smallest_claim < view.promised_slots else None,
        "short_by": max(view.promised_slots - view.database_has_room_for, 0),
        "excess": max(view.pool_connections - granted, 0),
    }
