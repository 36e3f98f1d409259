"""When the gate of one pool closes and opens. Pure.

PgBouncer (1.24, 1.25) fails every waiting client with the database's own words when a login is refused while the pool
has no other server connection, before anybody could act. So it must never try an unproven password on an empty pool:
such a pool is PAUSEd, and RESUMEd for the first client that waits once a login of our own was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

SLEEP_SHARE = 0.9  # of PgBouncer's server_idle_timeout: the gate closes before the pool is empty
# Below server_lifetime: a pool with one server connection would be empty for a moment when its lifetime is over.
REFRESH_SECONDS = 600.0
NEVER = float("-inf")


class Gate(Enum):
    """What the gate of a pool does."""

    OPEN = "open"
    CLOSED = "closed"


class Act(Enum):
    """What is to be done now."""

    NOTHING = "nothing"
    CLOSE = "close"
    WAKE = "wake"  # prove the login, then open
    PROVE = "prove"  # is there a login again?
    REFRESH = "refresh"  # close, if no transaction is in the way: the server connection is replaced


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
    is_refused: bool = False  # the database is known to refuse the login


@dataclass(frozen=True)
class GateState:
    """The memory between two looks."""

    gate: Gate = Gate.OPEN
    transactions: int = -1
    used_at: float = 0.0
    proven_at: float = NEVER
    has_given_up: bool = False  # clients are told what PgBouncer has heard, until a login is accepted again


def step(
    state: GateState, look: Look, sleep_seconds: float, refresh_seconds: float = REFRESH_SECONDS
) -> tuple[GateState, Act]:
    """Return the state after a look, and what to do about it."""
    if look.active or look.waiting or look.transactions != state.transactions:
        state = replace(state, transactions=look.transactions, used_at=look.now)
    if look.servers and state.proven_at == NEVER:
        state = replace(state, proven_at=look.now)  # it has just logged in
    if look.is_paused:
        # By us, or by an agent before us: only the agent has the console's password.
        return replace(state, gate=Gate.CLOSED), Act.WAKE if look.waiting else Act.NOTHING
    state = replace(state, gate=Gate.OPEN)
    if state.has_given_up:
        return state, Act.NOTHING if look.is_refused else Act.PROVE
    return state, _act_when_open(state, look, sleep_seconds, refresh_seconds)


def _act_when_open(state: GateState, look: Look, sleep_seconds: float, refresh_seconds: float) -> Act:
    if look.is_refused:
        # Its servers, if there are any, are kept: the gate has to stop the next login only.
        return Act.NOTHING if look.servers else Act.CLOSE
    if look.logging_in or look.waiting:
        # A PAUSE would end the login that is under way, and PgBouncer would take that for a failed one.
        return Act.NOTHING
    if not look.servers or (not look.active and look.now - state.used_at >= sleep_seconds):
        return Act.CLOSE
    is_due = look.servers == 1 and look.now - state.proven_at >= refresh_seconds
    return Act.REFRESH if is_due else Act.NOTHING
