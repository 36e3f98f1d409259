"""The budget is a proof: whatever the numbers, either the invariant holds or the error says how to get there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_cdk.connection_budget import BudgetExceeded, ConnectionBudget

COUNTS = st.integers(min_value=1, max_value=6000)
TASKS = st.integers(min_value=1, max_value=300)


@given(maximum=COUNTS, reserved=st.integers(0, 200), tasks=TASKS, surge=st.integers(1, 4))
def test_fleet_never_exceeds_what_the_database_allows(maximum: int, reserved: int, tasks: int, surge: int) -> None:
    """With any numbers: every task at its limit, in the middle of a deployment, leaves the reserve free."""
    try:
        budget = ConnectionBudget(maximum, 1, tasks, reserved_connections=reserved, surge=surge)
    except BudgetExceeded:
        assert maximum - reserved < tasks * surge
        return
    assert budget.per_task >= 1
    assert budget.per_task * tasks * surge <= maximum - reserved


@given(maximum=COUNTS, reserved=st.integers(0, 200), tasks=TASKS)
def test_no_larger_share_would_fit(maximum: int, reserved: int, tasks: int) -> None:
    """The share is the largest: one connection more per task breaks the limit."""
    try:
        budget = ConnectionBudget(maximum, 1, tasks, reserved_connections=reserved)
    except BudgetExceeded:
        return
    assert (budget.per_task + 1) * budget.most_tasks_alive > budget.available


@given(maximum=st.integers(20, 400), tasks=st.integers(100, 300))
def test_ways_out_of_the_error_really_lead_out(maximum: int, tasks: int) -> None:
    """Following the first or the second advice of the message gives a budget that holds."""
    try:
        ConnectionBudget(maximum, 1, tasks)
    except BudgetExceeded as error:
        message = str(error)
        (enough,) = re.findall(r"max_connections to (\d+) or more", message)
        assert ConnectionBudget(int(enough), 1, tasks).per_task == 1
        for fitting in re.findall(r"run at most (\d+) tasks", message):
            assert ConnectionBudget(maximum, 1, int(fitting)).per_task >= 1


def test_error_shows_the_sum() -> None:
    """The message has every term, so that the reader can redo the sum."""
    with pytest.raises(BudgetExceeded) as caught:
        ConnectionBudget(20, 2, 4)
    for term in ("max_connections 20", "reserved 15", "= 5", "4 tasks x 2", "= 8 tasks", "(1)", "(2)", "(3)"):
        assert term in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_connections": 0}, "max_connections must be between 1 and 262143, got 0"),
        ({"max_connections": 100, "min_tasks": 0}, "min_tasks must be between 1 and 1000, got 0"),
        ({"max_connections": 100, "min_tasks": 5, "max_tasks": 4}, "max_tasks must be between 5 and 1000, got 4"),
        ({"max_connections": 100, "reserved_connections": -1}, "reserved_connections must be between 0"),
    ],
)
def test_count_out_of_range_is_refused_with_value_and_range(numbers: dict[str, int], message: str) -> None:
    """A wrong count gives one message with the value seen and the allowed range."""
    with pytest.raises(ValueError, match=re.escape(message)):
        ConnectionBudget(**numbers)


def test_table_and_metadata_tell_the_same_sum() -> None:
    """The terminal's table and the template's metadata have the same numbers."""
    budget = ConnectionBudget(100, 2, 4)
    assert budget.as_metadata()["ConnectionsPerTask"] == 10
    assert budget.as_metadata()["MostConnections"] == 80
    table = budget.as_table()
    assert re.search(r"server connections per task +10\n", table)
    assert "80 <= 85" in table
