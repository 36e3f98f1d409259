"""How many server connections each pool needs: what it needed at most within a hold window. Pure.

The window is what keeps slots from flapping: a pool that needs fewer for a moment keeps what it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse

# A client that waits for a shorter time is served by the next connection that comes free: no lack of connections.
WAIT_COUNTS_SECONDS = 0.03
HOLD_SECONDS = 10.0  # while nobody else lacks connections
HOLD_UNDER_PRESSURE_SECONDS = 3.0
HOLD_DRAINING_SECONDS = 0.5  # clients leave for good


@dataclass(frozen=True, slots=True)
class Peak:
    """The maximum of the last window, in two halves: it forgets after half a window at the earliest, one at most."""

    since: float
    now: int
    before: int = 0

    @property
    def value(self) -> int:
        """The most of both halves."""
        return max(self.now, self.before)


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory between two readings of the pools."""

    peaks: Mapping[PoolKey, Peak] = field(default_factory=dict)
    waited: frozenset[PoolKey] = frozenset()  # pools whose clients waited at the reading before

    @property
    def by_pool(self) -> dict[PoolKey, int]:
        """Connections that each pool could use; at least one."""
        return {key: max(1, peak.value) for key, peak in self.peaks.items()}


def observe(demand: Demand, pools: Mapping[PoolKey, PoolUse], now: float, hold_seconds: float) -> Demand:
    """Return the demand after a reading of the pools."""
    peaks = {
        key: _rise(demand.peaks.get(key), _needs(use, key in demand.waited), now, hold_seconds / 2)
        for key, use in pools.items()
    }
    return Demand(peaks, frozenset(key for key, use in pools.items() if use.waiting))


def _needs(use: PoolUse, has_waited: bool) -> int:
    is_lacking = has_waited or use.max_wait_seconds >= WAIT_COUNTS_SECONDS
    return use.busy + (use.waiting if is_lacking else 0)


def _rise(peak: Peak | None, needs: int, now: float, half_seconds: float) -> Peak:
    if peak is None:
        return Peak(now, needs)
    if now - peak.since >= 2 * half_seconds:  # nobody has looked for a whole window
        return Peak(now, needs, peak.now if now - peak.since < 4 * half_seconds else 0)
    if now - peak.since >= half_seconds:
        return Peak(now, needs, peak.now)
    return Peak(peak.since, max(peak.now, needs), peak.before)
