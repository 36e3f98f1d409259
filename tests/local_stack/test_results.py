"""The record of a burst: its figures add up, follow the stated method, and survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emberpool_local.burst.failures import failure_cause
from emberpool_local.burst.promises import promises_broken
from emberpool_local.burst.results import (
    ConnectionSample,
    DemoResult,
    Machine,
    WayResult,
    from_json,
    percentile,
    to_json,
)

TOO_MANY = "FATAL: sorry, too many clients already"
REFUSED = 'connection to server at "127.0.0.1", port 40123 failed: FATAL:  sorry, too many clients already'


def way(name: str, latencies_ms: list[float], failures: dict[str, int], **changes: Any) -> WayResult:
    fields: dict[str, Any] = {
        "name": name,
        "title": name,
        "how": "somehow",
        "handler": "handler:handler",
        "environments": 8,
        "invocations": len(latencies_ms) + sum(failures.values()),
        "succeeded": len(latencies_ms),
        "failures": failures,
        "latencies_ms": latencies_ms,
        "wall_seconds": 2.0,
        "init_p50_ms": 90.5,
        "samples": [ConnectionSample(-0.1, 0), ConnectionSample(0.1, 5)],
        "most_server_connections": 5,
        "connections_opened": 5,
        "max_connections": 10,
    }
    return WayResult(**(fields | changes))


def demo(*ways: WayResult) -> DemoResult:
    machine = Machine("a processor", 2, 3.5, "a system", {"PostgreSQL": "18.6"})
    return DemoResult(list(ways), machine, "emberpool demo", "2026-01-02T03:04:05+00:00", 10, 5)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 10.0), (20, 10.0), (21, 20.0), (50, 30.0), (99, 50.0), (100, 50.0)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    """A percentile is one of the values: the smallest that at least that share does not exceed."""
    assert percentile([50.0, 10.0, 40.0, 20.0, 30.0], percent) == expected


def test_nothing_has_no_percentile() -> None:
    """Where no invocation succeeded there is no latency, rather than a latency of 0."""
    assert percentile([], 50) is None
    assert way("naive", [], {TOO_MANY: 3}).p99_ms is None


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_impossible_percent_is_refused(percent: float) -> None:
    """A percent outside of (0, 100] is an error that shows it."""
    with pytest.raises(ValueError, match=str(percent)):
        percentile([1.0], percent)


def test_figures_of_a_way() -> None:
    """Failures are summed, latencies and the rate are those of succeeded invocations."""
    measured = way("naive", [5.0, 1.0, 3.0], {TOO_MANY: 2, "KeyError: 'x'": 1})
    assert (measured.invocations, measured.failed, measured.p50_ms, measured.p99_ms) == (6, 3, 3.0, 5.0)
    assert measured.succeeded_per_second == 1.5


def test_figures_that_do_not_add_up_are_refused() -> None:
    """A way whose succeeded and failed are not its invocations cannot be recorded."""
    with pytest.raises(ValueError, match="do not add up to 7 invocations"):
        way("naive", [1.0], {TOO_MANY: 2}, invocations=7)


def test_json_round_trip() -> None:
    """What to_json wrote, from_json reads; the computed figures are in the JSON for other programs."""
    result = demo(way("naive", [1.0, 2.0], {TOO_MANY: 2}), way("emberpool", [1.0, 2.0, 3.0, 4.0], {}))
    assert from_json(to_json(result)) == result
    naive = json.loads(to_json(result))["ways"][0]
    assert (naive["failed"], naive["p50_ms"], naive["p99_ms"]) == (2, 1.0, 2.0)
    assert naive["failures"] == {TOO_MANY: 2}


@pytest.mark.parametrize(
    ("status", "error_type", "message", "cause"),
    [
        (
            "failed",
            "OperationalError",
            f"connection failed: {REFUSED}",
            TOO_MANY,
        ),
        (
            "failed",
            "ConnectionUnavailable",
            f"no connection to 127.0.0.1:40123: {REFUSED}\nMultiple connection attempts failed.",
            TOO_MANY,
        ),
        (
            "failed",
            "ConnectionTimeout",
            'connection to server at "10.0.0.1", port 5432 failed: connection timeout expired',
            "ConnectionTimeout: connection timeout expired",
        ),
        ("failed", "OrderRefused", "there is no product 501", "OrderRefused: there is no product N"),
        ("failed", "ValueError", "", "ValueError"),
        ("timed_out", "Sandbox.Timedout", "Task timed out after 3.00 seconds", "invocation timed out"),
        ("crashed", "Runtime.ExitError", "Runtime exited with error: signal 9", "invocation crashed"),
        ("failed", None, None, "unknown error"),
    ],
)
def test_failures_are_named_by_their_cause(
    status: str, error_type: str | None, message: str | None, cause: str
) -> None:
    """Hosts, ports and numbers do not split one cause into many; the server's own words win."""
    assert failure_cause(status, error_type, message) == cause


def test_long_causes_are_shortened() -> None:
    """A cause fits into a table, whatever was raised."""
    assert len(failure_cause("failed", "ValueError", "x" * 5000)) == 100


def test_promises_that_hold() -> None:
    """Naive failed, emberpool did not and stayed within its pool: nothing is broken."""
    assert promises_broken(demo(way("naive", [1.0], {TOO_MANY: 1}), way("emberpool", [1.0, 2.0], {}))) == []


def test_each_broken_promise_is_named() -> None:
    """A naive way that works, an emberpool that fails and a pool that overflows are three sentences."""
    overflowing = way("emberpool", [1.0], {"PoolBusy: busy": 1}, most_server_connections=6)
    broken = promises_broken(demo(way("naive", [1.0, 2.0], {}), overflowing))
    assert [sentence.split(":")[0] for sentence in broken] == [
        "the naive way did not fail",
        "1 of 2 invocations failed with emberpool",
        "emberpool had 6 server connections, its limit is 5",
    ]
