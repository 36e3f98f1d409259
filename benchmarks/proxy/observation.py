"""A fault under a steady load: what is served before, meanwhile and afterwards.

The clients ask at their beats, so that what a pool serves that is well is known: all of them, each before the next one.
It has recovered from the moment on from which for a while each half second has 99% of what was served before.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.proxy.clients import Target
from benchmarks.proxy.steady_clients import Plan, SteadyLoad, steady_load

from emberpool_local.host.waiting import wait_until

PLAN = Plan(clients=80, period_seconds=0.2)  # below the default max_client_conn
SETTLE_SECONDS, BEFORE_SECONDS = 1.5, 3.0
WINDOW_SECONDS, STEP_SECONDS, LASTING_SECONDS = 0.5, 0.02, 1.0
SHARE = 0.99
BOUND_SECONDS = 60.0
UNKNOWN_SECONDS = PLAN.period_seconds + 0.2  # a beat's outcome is known when the next one is due, and written soon
RATES_FROM, RATES_TO, RATE_SECONDS = -2.0, 20.0, 0.25  # of the curves, since the reference


@dataclass(frozen=True)
class Recovery:
    """One fault: seconds since the database was back, or since the kill; how many were told of an error meanwhile."""

    seconds: float
    failed: int
    rates: Sequence[float]  # served a second, since RATES_FROM, each over RATE_SECONDS


# (beats that were served, how many a second before, from when, until when they are known)
Judge = Callable[[Sequence[float], float, float, float], float | None]


def recovery_seconds(served: Sequence[float], former: float, since: float, until: float) -> float | None:
    """Return after how long each window has SHARE of the `former` beats a second; None when that is not known yet."""
    good_since: float | None = None
    for begin, is_good in windows(served, former, since, until):
        if not is_good:
            good_since = None
        elif good_since is None:
            good_since = begin
        elif begin - good_since >= LASTING_SECONDS:
            return good_since - since
    return None


def windows(served: Sequence[float], former: float, since: float, until: float) -> Iterator[tuple[float, bool]]:
    """Return where each window begins, and whether it has SHARE of the `former` beats a second."""
    beats = sorted(served)
    for step in range(int((until - WINDOW_SECONDS - since) / STEP_SECONDS) + 1):
        begin = since + step * STEP_SECONDS
        yield begin, _count(beats, begin, begin + WINDOW_SECONDS) >= SHARE * former * WINDOW_SECONDS


def observed(target: Target, happen: Callable[[], float], judge: Judge = recovery_seconds) -> Recovery:
    """Return what came of a fault under load; `happen` returns the moment that everything is told from.

    Raises RuntimeError when the judge has nothing to say for too long.
    """
    with steady_load(PLAN, target) as load:
        wait_until("the load did not begin", lambda: len(load.served) > PLAN.clients, BOUND_SECONDS)
        time.sleep(SETTLE_SECONDS + BEFORE_SECONDS)
        began = time.monotonic() - UNKNOWN_SECONDS
        former = _count(sorted(load.served), began - BEFORE_SECONDS, began) / BEFORE_SECONDS
        reference = happen()
        deadline = time.monotonic() + BOUND_SECONDS
        seconds = None
        while seconds is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the load is not served again {BOUND_SECONDS:g} s after the fault")
            time.sleep(0.1)
            seconds = judge(load.served, former, reference, time.monotonic() - UNKNOWN_SECONDS)
        failed = sum(beat >= began for beat in load.failed)
        return Recovery(seconds, failed, _rates(load, reference))


def _count(beats: Sequence[float], begin: float, end: float) -> int:
    return bisect.bisect_left(beats, end) - bisect.bisect_left(beats, begin)


def _rates(load: SteadyLoad, reference: float) -> list[float]:
    """Return the curve, as far as it is known."""
    until, beats = time.monotonic() - UNKNOWN_SECONDS, sorted(load.served)
    steps = int((RATES_TO - RATES_FROM) / RATE_SECONDS)
    begins = [reference + RATES_FROM + step * RATE_SECONDS for step in range(steps)]
    return [
        _count(beats, begin, begin + RATE_SECONDS) / RATE_SECONDS for begin in begins if begin + RATE_SECONDS <= until
    ]
