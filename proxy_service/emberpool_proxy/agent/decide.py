"""Decides how many server connections this task may have, and which slots it takes and gives back. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from emberpool_proxy.agent.budget_reading import PoolKey, Reading


@dataclass(frozen=True, slots=True)
class Terms:
    """What does not change while the task runs. Counts; `pools` is processes x entries."""

    floor: int
    shared_slots: int
    pools: int = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: limits (lower ones first), give, take, publish, read, wait."""

    limits: dict[PoolKey, int]  # what PgBouncer's limits must be; every pool of the reading
    shrink: frozenset[PoolKey] = frozenset()  # pools with more servers than their limit: close them as they come free
    give: frozenset[int] = frozenset()
    take: tuple[int, ...] = ()  # candidates in the order to try
    take_count: int = 0  # stop after so many
    missing: int = 0  # to publish; 0: not hungry
    wants_connection: bool = False  # False: close the control connection (all slots are given)
    wants_fleet: bool = False  # read the fleet's view before the next step
    wait_seconds: float = 0.0  # at most, until the next step


@dataclass(frozen=True, slots=True)
class State:
    """The memory between two steps."""

    terms: Terms
    seed: int = 0  # of the jitter
    steps: int = field(default=0)


def step(state: State, reading: Reading) -> tuple[State, Decision]:
    """Return the state after `reading`, and what to do about it."""
    raise NotImplementedError
