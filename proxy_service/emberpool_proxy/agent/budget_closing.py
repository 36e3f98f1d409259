"""How a pool whose connections are never free comes down to its limit, without falling below it. Pure.

Lowering a limit closes only what is idle. A short `server_lifetime` closes connections as they come free, and PgBouncer
spaces such closes by lifetime / pool size. So it can be told to close only as many as are too many until the next look,
and a pool does not lose the connections that it may keep: they would have to log in again, which costs TLS and SCRAM,
and may be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLOSE_SECONDS = 0.15  # the next look comes by then; all that are too many have closed after about three times that
# While the database refuses logins the last connection of a pool is one that serves: an agent that was held up for as
# long must not lose it.
CAREFUL_CLOSE_SECONDS = 1.0
LONGEST_LIFETIME_SECONDS = 0.5  # only connections that are older close


@dataclass(frozen=True, slots=True)
class Excess:
    """A pool that may have more connections than its limit: `servers` of them, of which `idle` are free."""

    limit: int
    servers: int
    idle: int

    @property
    def is_idle_enough(self) -> bool:
        """Whether PgBouncer's own look, three times a second, closes all that are too many."""
        return self.idle >= self.servers - self.limit


def closing(pools: Mapping[str, Excess], close_seconds: float = CLOSE_SECONDS) -> tuple[float, dict[str, int]]:
    """Return `server_lifetime` and the pool sizes that close what is too many within `close_seconds`, and no more.

    PgBouncer closes a free connection that is older than the lifetime, when the last close was lifetime / pool size
    ago or more. It also closes what is idle above the pool size.
    """
    ratio = max(pool.limit / (pool.servers - pool.limit) for pool in pools.values())
    lifetime = min(max(close_seconds * ratio, close_seconds), max(LONGEST_LIFETIME_SECONDS, close_seconds))
    sizes = {entry: _pool_size(pool, lifetime / close_seconds) for entry, pool in pools.items()}
    return lifetime, sizes


def _pool_size(pool: Excess, lifetimes: float) -> int:
    # The first one closes at once, the others follow.
    size = max(1, int(lifetimes * max(1, pool.servers - pool.limit - 1)))
    return max(size, pool.limit) if pool.idle else size
