"""When the gate of one pool closes and opens. Pure.

PgBouncer (1.24, 1.25) fails every waiting client with the database's own words when a login is refused while the pool
has no other server connection, before anybody could act. So it must never try an unproven password on an empty pool:
such a pool is PAUSEd, and RESUMEd for the first client that waits once a login of our own was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

SLEEP_SECONDS = 55.0  # below PgBouncer's server_idle_timeout: the gate closes before the pool is empty
# Below server_lifetime: a pool with one server connection would be empty for a moment when its lifetime is over.
REFRESH_SECONDS = 600.0


class Gate(Enum):
    """What the gate of a pool does."""

    OPEN = "open"
    CLOSED = "closed"  # by us
    NOT_OURS = "not ours"  # paused by somebody else, who will resume it


class Act(Enum):
    """What is to be done now."""

    NOTHING = "nothing"
    CLOSE = "close"
    WAKE = "wake"  # prove the login, then open
    REFRESH = "refresh"  # close, prove the login, open: the server connection is replaced


@dataclass(frozen=True)
class Look:
    """What is seen of a pool. `servers` are logged in; `transactions` is PgBouncer's total."""

    now: float
    is_paused: bool
    servers: int
    logging_in: int
    active: int
    waiting: int
    transactions: int


@dataclass(frozen=True)
class GateState:
    """The memory between two looks."""

    gate: Gate = Gate.OPEN
    transactions: int = -1
    used_at: float = 0.0
    proven_at: float = float("-inf")


def step(
    state: GateState, look: Look, sleep_seconds: float = SLEEP_SECONDS, refresh_seconds: float = REFRESH_SECONDS
) -> tuple[GateState, Act]:
    """Return the state after a look, and what to do about it."""
    if look.active or look.waiting or look.transactions != state.transactions:
        state = replace(state, transactions=look.transactions, used_at=look.now)
    if state.gate is Gate.CLOSED and look.is_paused:
        return state, Act.WAKE if look.waiting else Act.NOTHING
    if look.is_paused:
        return replace(state, gate=Gate.NOT_OURS), Act.NOTHING
    state = replace(state, gate=Gate.OPEN)
    if look.logging_in or look.waiting:
        # A PAUSE would end the login that is under way, and PgBouncer would take that for a failed one.
        return state, Act.NOTHING
    if not look.servers or (not look.active and look.now - state.used_at >= sleep_seconds):
        return state, Act.CLOSE
    if look.servers == 1 and look.now - state.proven_at >= refresh_seconds:
        return state, Act.REFRESH
    return state, Act.NOTHING
