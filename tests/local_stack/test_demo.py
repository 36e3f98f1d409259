"""The demo in small, on real parts: the naive way fails, emberpool does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberpool_local.burst import demo
from emberpool_local.burst.demo import ExampleMissing, example_folder, run_demo
from emberpool_local.burst.fire import BurstInvalid, BurstProgress
from emberpool_local.burst.own_function import run_own_burst
from emberpool_local.burst.promises import promises_broken

ORDERS = example_folder("orders")


def test_demo_shows_the_problem_and_the_cure() -> None:
    """16 environments against 10 connections: naive is refused, emberpool answers everything within its pool."""
    seen: list[BurstProgress] = []

    result = run_demo(
        environments=16, invocations=64, max_connections=10, max_server_connections=4, progress=seen.append
    )

    assert promises_broken(result) == []
    assert [way.name for way in result.ways] == ["naive", "warm", "emberpool"]
    for way in result.ways:
        assert way.succeeded + way.failed == way.invocations == 64
        assert 0 < way.most_server_connections < 10
    naive, warm, emberpool = result.ways
    assert any("too many clients" in cause or "slots are reserved" in cause for cause in naive.failures)
    assert warm.failed > 0
    assert naive.connections_opened == naive.succeeded
    assert warm.connections_opened == warm.most_server_connections
    assert (emberpool.failed, emberpool.succeeded) == (0, 64)
    assert emberpool.most_server_connections <= 4
    assert emberpool.connections_opened <= 4 + 1  # the agent proves the pool's login before the first client's
    assert [progress.title for progress in seen if progress.done == progress.total == 64] == [
        "naive",
        "warm only",
        "emberpool",
    ]


def test_own_function_is_burst_through_the_proxy() -> None:
    """The example stands for a user's own function: its schema is run, and nothing fails."""
    result = run_own_burst(
        "handler:handler",
        ORDERS,
        (ORDERS / "event.json").read_bytes(),
        environments=6,
        invocations=12,
        max_connections=10,
        max_server_connections=2,
        schema=ORDERS / "schema.sql",
    )
    (way,) = result.ways
    assert (way.succeeded, way.failures) == (12, {})
    assert 0 < way.most_server_connections <= 2
    assert result.machine.versions["PgBouncer"]


def test_bad_numbers_are_refused_before_anything_starts() -> None:
    """No server is started for a burst that cannot be fired."""
    steps: list[str] = []
    with pytest.raises(BurstInvalid):
        run_demo(environments=0, stack_progress=steps.append)
    with pytest.raises(BurstInvalid):
        run_demo(max_connections=20, max_server_connections=20, stack_progress=steps.append)
    assert steps == []


def test_missing_example_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation without its examples says so."""
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "a" / "b" / "demo.py"))
    with pytest.raises(ExampleMissing, match="orders"):
        example_folder("orders")
