"""The estimate of the wait in line: it warns when the law says so, and its advice works."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_cdk.queue_wait import FunctionLoad, queue_warnings, wait_seconds


def _warnings(
    *concurrency: int | None,
    connections: int = 50,
    query_wait: float = 10,
    timeout: float = 15,
    transaction: float = 0.1,
) -> list[str]:
    functions = [FunctionLoad(f"F{number}", each, timeout) for number, each in enumerate(concurrency)]
    warnings = queue_warnings(
        functions, server_connections=connections, query_wait_seconds=query_wait, transaction_seconds=transaction
    )
    return [each.text for each in warnings]


@pytest.mark.parametrize(("clients", "seconds"), [(0, 0), (50, 0), (100, 0.1), (1000, 1.9)])
def test_wait_follows_littles_law(clients: int, seconds: float) -> None:
    """With a connection for each client nobody waits; with half as many, everybody waits for one transaction."""
    assert wait_seconds(clients, 50, 0.1) == pytest.approx(seconds)


def test_functions_that_are_served_in_time_give_no_warning() -> None:
    """A thousand executions of fifty connections wait for two seconds, which they have."""
    assert _warnings(600, 400) == []


def test_wait_above_the_query_wait_is_warned_about_with_the_sum() -> None:
    """The warning states the law, its assumption, every term, and figures that mend it."""
    (warning,) = _warnings(4000, 4000)
    assert warning == (
        "clients may wait too long: the functions may run 8000 times at once and share 50 server connections; if all "
        "have a transaction of 0.1 s at once, by Little's law they wait 0.1 s x (8000 / 50 - 1) = 15.9 s, but the "
        "pool's query_wait_seconds is 10 s: reserve at most 5050 executions in all, have 80 server connections, or "
        "keep transactions below 0.062 s"
    )


def test_wait_above_a_functions_timeout_is_warned_about() -> None:
    """A function that is ended before its turn comes is named, however long the pool would let it wait."""
    (warning,) = _warnings(2000, timeout=3)
    assert "but what F0 has until its timeout is 2.9 s" in warning


def test_timeout_below_one_transaction_is_to_be_raised() -> None:
    """No figure of the pool helps a function that has no time for its own transaction."""
    (warning,) = _warnings(1, timeout=1, transaction=2)
    assert warning.endswith("raise it")


def test_functions_without_a_bound_are_named() -> None:
    """Without reserved concurrency there is no sum: the functions are listed, the others are still estimated."""
    first, second = _warnings(None, 8000, None)
    assert first.startswith("no reserved concurrency: F0, F2;")
    assert "may run 8000 times" in second


@given(
    st.lists(st.integers(1, 20_000), min_size=1, max_size=3),
    st.integers(1, 5000),
    st.floats(0.5, 900),
    st.floats(1, 900),
    st.floats(0.001, 0.5),
)
def test_advice_leads_out(
    concurrency: list[int], connections: int, query_wait: float, timeout: float, transaction: float
) -> None:
    """Each figure of a warning, when it is followed, ends the warning."""
    terms = {"connections": connections, "query_wait": query_wait, "timeout": timeout, "transaction": transaction}
    for warning in _warnings(*concurrency, **terms):  # type: ignore[arg-type]
        fitting, needed, shorter = re.findall(r"at most (\d+) .* have (\d+) .* below ([0-9.e-]+) s", warning)[0]
        assert not _warnings(int(fitting), **terms)  # type: ignore[arg-type]
        assert not _warnings(*concurrency, **{**terms, "connections": int(needed)})  # type: ignore[arg-type]
        assert not _warnings(*concurrency, **{**terms, "transaction": float(shorter)})  # type: ignore[arg-type]
