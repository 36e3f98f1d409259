"""What the page and the picture draw of a run: curves of so many points, nothing of how they are drawn.

Fewer points than were measured never hide what matters: of the looks into the database that fall together the one with
the most connections stays, of latencies the slowest, and failures are summed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emberpool_local.lab.results import BUCKET_SECONDS, Bucket, Connections, FaultRecord, LabResult

LANE_SHARE = 0.026  # of the width: what the number of a fault takes


@dataclass(frozen=True)
class Layers:
    """Curves that lie on each other, one for each task; all have a value at each moment."""

    at: Sequence[float]
    values: Mapping[str, Sequence[int]]

    @property
    def totals(self) -> list[int]:
        """The upper edge of the topmost."""
        return [sum(column) for column in zip(*self.values.values(), strict=True)] if self.values else []


def merged(buckets: Sequence[Bucket], most: int) -> list[Bucket]:
    """Return at most about `most` buckets; their counts are of what ended in them, whatever they last."""
    size = math.ceil(len(buckets) / most) if buckets else 1
    return [_one(buckets[start : start + size]) for start in range(0, len(buckets), size)]


def bucket_seconds(buckets: Sequence[Bucket]) -> float:
    """Return how long each of the merged buckets lasts."""
    return round(buckets[1].at - buckets[0].at, 3) if len(buckets) > 1 else BUCKET_SECONDS


def connection_layers(result: LabResult, most: int) -> Layers:
    """Return each task's server connections, its agent's included."""
    looks = _fewer(result.connections, most)
    tasks = _tasks(result)
    return Layers(
        [look.at for look in looks],
        {task: [look.pool.get(task, 0) + look.agents.get(task, 0) for look in looks] for task in tasks},
    )


def slot_layers(result: LabResult, most: int) -> Layers:
    """Return the slots that each task holds."""
    looks = _fewer(result.connections, most)
    tasks = _tasks(result)
    return Layers([look.at for look in looks], {task: [look.slots.get(task, 0) for look in looks] for task in tasks})


def lanes(faults: Sequence[FaultRecord], begin: float, seconds: float) -> list[int]:
    """Return for each fault how high its number stands, so that those of neighbours do not lie on each other."""
    ends: list[float] = []
    chosen = []
    for fault in faults:
        left = (middle(fault) - begin) / seconds - LANE_SHARE / 2
        lane = next((number for number, end in enumerate(ends) if end <= left), len(ends))
        ends[lane : lane + 1] = [left + LANE_SHARE]
        chosen.append(lane)
    return chosen


def middle(fault: FaultRecord) -> float:
    """Return the moment that the number of the fault stands over."""
    return (fault.begun + fault.ended) / 2


def may_fail_until(fault: FaultRecord) -> float:
    """Return the end of the band."""
    return fault.ended if fault.may_fail_until is None else max(fault.may_fail_until, fault.ended)


def span(result: LabResult) -> tuple[float, float]:
    """Return the first and the last moment that is drawn."""
    ends = [bucket.at + BUCKET_SECONDS for bucket in result.buckets] + [may_fail_until(f) for f in result.faults]
    return 0.0, max([result.seconds, *ends])


def _one(buckets: Sequence[Bucket]) -> Bucket:
    return Bucket(
        at=buckets[0].at,
        succeeded=sum(bucket.succeeded for bucket in buckets),
        failed=sum(bucket.failed for bucket in buckets),
        unknown=sum(bucket.unknown for bucket in buckets),
        slowest_ms=max(bucket.slowest_ms for bucket in buckets),
    )


def _fewer(looks: Sequence[Connections], most: int) -> list[Connections]:
    size = math.ceil(len(looks) / most) if looks else 1
    groups = (looks[start : start + size] for start in range(0, len(looks), size))
    return [max(group, key=lambda look: sum(look.pool.values()) + sum(look.agents.values())) for group in groups]


def _tasks(result: LabResult) -> list[str]:
    """List the tasks in the order in which they first had a connection."""
    names: dict[str, None] = {}
    for look in result.connections:
        for counts in (look.pool, look.agents, look.slots):
            names |= dict.fromkeys(name for name, count in counts.items() if count)
    return list(names)
