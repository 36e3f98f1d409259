"""How soon the throughput is back after a fault, from made-up runs."""

from __future__ import annotations

import pytest

from emberpool_local.lab.ledger import Transfer
from emberpool_local.lab.load import Invocation
from emberpool_local.lab.results import BUCKET_SECONDS, Bucket
from emberpool_local.lab.throughput import baseline, buckets_of, recovered_after

USUAL = 10
SECONDS = 20.0


def buckets(*rates: tuple[float, int]) -> list[Bucket]:
    """USUAL in each bucket, and another number from each of these moments on."""
    counts = [USUAL] * round(SECONDS / BUCKET_SECONDS)
    for begin, rate in rates:
        first = round(begin / BUCKET_SECONDS)
        counts[first:] = [rate] * (len(counts) - first)
    return [Bucket(round(number * BUCKET_SECONDS, 3), count, 0, 0, 1.0) for number, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("rates", "lasts", "seconds"),
    [
        ((), True, 0.0),
        (((6.0, 0), (7.0, USUAL)), True, 0.0),  # back before the fault's end
        (((6.0, 0), (9.0, USUAL)), True, 1.0),  # the fault ends at 8
        (((6.0, 0), (9.0, USUAL)), False, 3.0),  # over at once: from when it fell
        (((6.0, 0), (9.0, 40), (9.1, USUAL)), True, 1.0),  # those who waited end all at once: counted like 15
        (((6.0, 0),), True, None),
        (((6.0, USUAL - 2),), True, None),  # 80% is not back
    ],
)
def test_throughput_is_back_when_it_stays_at_nine_tenths(
    rates: tuple[tuple[float, int], ...], lasts: bool, seconds: float | None
) -> None:
    """It is the first half second with at least 90%, measured from the fault's end or from the fall."""
    seen = recovered_after(buckets(*rates), USUAL, (6.0, 8.0), lasts, until=15.0)
    assert seen == seconds if seconds is None else seen == pytest.approx(seconds, abs=BUCKET_SECONDS)


def test_before_is_what_no_fault_disturbed() -> None:
    """The three seconds until the fault count, but nothing before the last fault's end; too little is nothing."""
    slow_at_first = buckets((0.0, 2), (5.0, USUAL))
    assert baseline(slow_at_first, 9.0) == USUAL
    assert baseline(slow_at_first, 6.5) == pytest.approx(6, abs=0.5)
    assert baseline(slow_at_first, 6.5, not_before=5.0) == USUAL
    assert baseline(slow_at_first, 6.5, not_before=6.3) is None


def test_bucket_counts_what_ended_in_it() -> None:
    """By how it ended; environments that the lab killed are nobody's failure."""
    made = [
        Invocation(Transfer(number, 0, 1, 1), 0.0, ended, kind, 1)
        for number, (ended, kind) in enumerate(
            [(0.05, "succeeded"), (0.15, "failed"), (0.19, "unknown"), (0.15, "killed"), (0.4, "succeeded")]
        )
    ]
    seen = [(one.succeeded, one.failed, one.unknown) for one in buckets_of(made, 0.5)]
    assert seen == [(1, 0, 0), (0, 1, 1), (0, 0, 0), (0, 0, 0), (1, 0, 0)]
    assert buckets_of(made, 0.5)[1].slowest_ms == 190.0
