"""How many invocations ended when, and how soon after a fault as many as before: pure.

The throughput is back when for WINDOW_SECONDS at least BACK_SHARE of what succeeded before the fault succeeds again;
before is the mean of the BASELINE_SECONDS until it began. It is measured from the fault's end, or, when the fault is
over at once (a crash), from when the throughput fell. What had waited and ends all at once then does not count for more
than BURST_SHARE of what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from emberpool_local.lab.load import Invocation
from emberpool_local.lab.results import BUCKET_SECONDS, Bucket

BACK_SHARE = 0.9
BURST_SHARE = 1.5
WINDOW_SECONDS = 0.5
BASELINE_SECONDS = 3.0
FALL_SECONDS = 1.0  # after its end a fault has shown what it does
LEAST_BASELINE_SECONDS = 0.5  # below it nothing can be said

DEFINITION = (
    f"until for {WINDOW_SECONDS:g} s there is at least {BACK_SHARE:.0%} of the throughput of the "
    f"{BASELINE_SECONDS:g} s before the fault: from the fault's end, or from when the throughput fell if the fault is "
    "over at once"
)


def buckets_of(invocations: Iterable[Invocation], seconds: float) -> list[Bucket]:
    """Return what ended in each BUCKET_SECONDS of the run, empty ones too; what we killed is in none."""
    ended: list[list[Invocation]] = [[] for _ in range(math.ceil(seconds / BUCKET_SECONDS))]
    for invocation in invocations:
        if invocation.kind != "killed" and 0 <= invocation.ended < len(ended) * BUCKET_SECONDS:
            ended[min(int(invocation.ended / BUCKET_SECONDS), len(ended) - 1)].append(invocation)
    return [_bucket(number, those) for number, those in enumerate(ended)]


def _bucket(number: int, ended: Sequence[Invocation]) -> Bucket:
    kinds = [invocation.kind for invocation in ended]
    slowest_ms = max((invocation.duration_ms for invocation in ended), default=0.0)
    at = round(number * BUCKET_SECONDS, 3)
    return Bucket(at, kinds.count("succeeded"), kinds.count("failed"), kinds.count("unknown"), round(slowest_ms, 1))


def baseline(buckets: Sequence[Bucket], begun: float, not_before: float = 0.0) -> float | None:
    """Return how many succeeded in a bucket before the fault began, but after `not_before`; None: too short a time."""
    first = max(not_before, begun - BASELINE_SECONDS, 0.0)
    before = [bucket.succeeded for bucket in buckets if first <= bucket.at and bucket.at + BUCKET_SECONDS <= begun]
    if len(before) * BUCKET_SECONDS < LEAST_BASELINE_SECONDS:
        return None
    return sum(before) / len(before)


def recovered_after(
    buckets: Sequence[Bucket], usual: float | None, fault: tuple[float, float], lasts: bool, until: float
) -> float | None:
    """Return how many seconds it took until the throughput was back (0: it never fell); None: not before `until`.

    `fault` is when it began and ended; `lasts` says that it is measured from its end.
    """
    if not usual:
        return None
    begun, ended = fault
    first = begun if not lasts else ended
    windows = [(at, share) for at, share in _shares(buckets, usual) if first <= at + BUCKET_SECONDS and at <= until]
    fell = next((at for at, share in windows if share < BACK_SHARE and at <= ended + FALL_SECONDS), None)
    if fell is None:
        return 0.0 if windows else None
    since = max(fell, first)
    return next((round(max(0.0, at - since), 3) for at, share in windows if at >= fell and share >= BACK_SHARE), None)


def _shares(buckets: Sequence[Bucket], usual: float) -> Iterator[tuple[float, float]]:
    """Return for each bucket what the WINDOW_SECONDS from it on have of the usual throughput."""
    counted = [min(bucket.succeeded, BURST_SHARE * usual) for bucket in buckets]
    length = round(WINDOW_SECONDS / BUCKET_SECONDS)
    for number in range(len(buckets) - length + 1):
        yield buckets[number].at, sum(counted[number : number + length]) / (usual * length)
