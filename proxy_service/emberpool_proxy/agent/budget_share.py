"""Splits connections: the fleet's slots among tasks, and a task's connections among its pools. Pure.

All of it is in integers, and ties go by the order of keys: every task that sees the same comes to the same shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse


class Ordered(Protocol):
    """What can be a key here."""

    def __lt__(self, other: Self, /) -> bool:
        """Return whether this one comes first."""
        ...

    def __hash__(self) -> int:
        """Return the hash."""
        ...


K = TypeVar("K", bound=Ordered)


@dataclass(frozen=True, slots=True)
class Division:
    """What the limits become now, and the pools that must close connections to keep to them."""

    limits: dict[PoolKey, int]
    shrink: frozenset[PoolKey]


def split(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """Split `total` in proportion to `weights`: all of it (largest remainder), or nothing when nobody has a weight.

    Nobody gets more than its weight while `total` is at most their sum.
    """
    whole = sum(weights.values())
    if not whole or total <= 0:
        return dict.fromkeys(weights, 0)
    parts = {key: total * weight // whole for key, weight in weights.items()}
    rest = total - sum(parts.values())
    by_remainder = sorted(weights, key=lambda key: (-(total * weights[key] % whole), key))
    for key in by_remainder[:rest]:
        parts[key] += 1
    return parts


def fair_shares(demands: Mapping[K, int], slots: int) -> dict[K, int]:
    """Split `slots` so that waiting times become equal: in proportion to demand, at least one for each that has any.

    Nobody gets more than it demands: the sum is `slots`, or that of the demands when it is less.
    """
    wanting = {key: demand for key, demand in demands.items() if demand > 0}
    if sum(wanting.values()) <= slots:
        return {key: max(0, demand) for key, demand in demands.items()}
    shares = dict.fromkeys(demands, 0)
    for key in sorted(wanting, key=lambda key: (-wanting[key], key))[: max(0, slots)]:
        shares[key] = 1
    beyond = split(slots - len(wanting), {key: demand - 1 for key, demand in wanting.items()})
    return {key: share + beyond.get(key, 0) for key, share in shares.items()}


def share_out(total: int, demands: Mapping[PoolKey, int]) -> dict[PoolKey, int]:
    """Split all of `total` among a task's pools by demand; each has at least one, even when that is more than `total`.

    A limit of 0 would mean none to PgBouncer, and a pool that cannot connect fails its clients.
    """
    demands = {key: max(1, demand) for key, demand in demands.items()}
    shares = fair_shares(demands, max(total, len(demands)))
    rest = split(total - sum(shares.values()), demands)
    return {key: share + rest[key] for key, share in shares.items()}


# Between pools of a task: one connection to and fro with each look would be a RELOAD each.
LEAST_MOVE = 2


def tolerance(share: int) -> int:
    """Return how far from its share somebody may be before connections are moved: each move closes and opens some."""
    return max(1, share // 10)


def divide(total: int, pools: Mapping[PoolKey, PoolUse], demands: Mapping[PoolKey, int], lingering: int) -> Division:
    """Return the next limits on the way to a division of `total`: lowered at once, raised into the room that is there.

    Room is what neither a limit in force, nor a connection that is open, nor one of a dead PgBouncer takes. A limit
    that is lowered now makes none yet: its PgBouncer may be opening connections until it is told.
    """
    target = aim(total, {key: use.limit for key, use in pools.items()}, demands)
    limits = {key: _lowered(use, target[key]) for key, use in pools.items()}
    room = total - lingering - sum(max(use.limit, use.servers) for use in pools.values())
    gaps = {key: 0 if use.is_settling else target[key] - limits[key] for key, use in pools.items()}
    for key, raise_by in split(min(room, sum(gaps.values())), gaps).items():
        limits[key] += raise_by
    return Division(limits, frozenset(key for key, use in pools.items() if use.servers > limits[key]))


def _lowered(use: PoolUse, target: int) -> int:
    # A limit that was to shrink its pool may rise again to what is still open: that takes no room.
    is_free_to_rise = use.servers > use.limit and not use.is_settling
    return min(target, use.servers if is_free_to_rise else use.limit)


def aim(total: int, limits: Mapping[PoolKey, int], demands: Mapping[PoolKey, int]) -> dict[PoolKey, int]:
    """Return what the limits should come to: those in force, as far as they fit and nobody lacks much by them."""
    best = share_out(total, demands)
    nearest = _fitted(total, limits, demands) or best
    for key, limit in nearest.items():
        if demands[key] > limit and best[key] - limit >= max(LEAST_MOVE, tolerance(limit)):
            return best
    return nearest


def _fitted(total: int, limits: Mapping[PoolKey, int], demands: Mapping[PoolKey, int]) -> dict[PoolKey, int] | None:
    """Grow where something lacks and then by demand; or take from what nobody needs. None: that is not enough."""
    change = total - sum(limits.values())
    if change < 0:
        spare = {key: max(0, limit - demands[key]) for key, limit in limits.items()}
        if sum(spare.values()) < -change:
            return None
        less = split(-change, spare)
        return {key: limit - less[key] for key, limit in limits.items()}
    lacks = {key: max(0, demands[key] - limit) for key, limit in limits.items()}
    first = split(min(change, sum(lacks.values())), lacks)
    rest = split(change - sum(first.values()), demands)
    return {key: limit + first[key] + rest[key] for key, limit in limits.items()}
