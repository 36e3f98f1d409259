"""The budget is a proof: whatever the numbers, either the invariant holds or the error says how to get there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emberpool_cdk.budget_terms import BudgetTerms, least_floor
from emberpool_cdk.budget_text import ways_out
from emberpool_cdk.connection_budget import BudgetExceeded, ConnectionBudget
from emberpool_proxy.settings import AGENT_CONNECTIONS, ProxySettings


@st.composite
def terms(draw: st.DrawFn) -> dict[str, int]:
    """Any terms that are in range by themselves."""
    max_tasks = draw(st.integers(1, 150))
    pools = draw(st.sampled_from([1, 1, 1, 2, 4, 12]))
    return {
        "max_connections": draw(st.one_of(st.integers(1, 400), st.integers(1, 12_000))),
        "min_tasks": draw(st.integers(1, max_tasks)),
        "max_tasks": max_tasks,
        "reserved_connections": draw(st.integers(0, 200)),
        "surge": draw(st.integers(1, 3)),
        "floor_connections": draw(st.integers(least_floor(pools), least_floor(pools) + 30)),
        "stopping_generations": draw(st.integers(0, 2)),
        "other_tasks": draw(st.sampled_from([0, 0, 0, 1, 12, 90])),
        "pools": pools,
    }


@given(terms())
def test_fleet_never_exceeds_what_the_database_allows(numbers: dict[str, int]) -> None:
    """With any numbers: every task at its floor, every agent busy and every slot taken leave the reserve free."""
    try:
        budget = ConnectionBudget(**numbers)
    except BudgetExceeded:
        assert not BudgetTerms(**numbers).holds
        return
    alive = numbers["max_tasks"] * (numbers["surge"] + numbers["stopping_generations"]) + numbers["other_tasks"]
    assert budget.most_tasks_alive == alive
    connections = alive * (budget.floor + AGENT_CONNECTIONS) + budget.shared_slots
    assert connections == budget.most_connections <= numbers["max_connections"] - numbers["reserved_connections"]
    assert budget.shared_slots >= 0
    assert budget.floor >= least_floor(numbers["pools"])
    # Each pool of a task has one connection, even where the database still ends those of a PgBouncer that was killed.
    assert budget.share_at_min_tasks >= numbers["pools"]
    assert budget.most_per_task >= budget.share_at_min_tasks


@given(terms())
def test_nothing_is_refused_that_fits_and_nothing_is_left_over(numbers: dict[str, int]) -> None:
    """A refused budget lacks connections for the floors alone; one that holds gives away all that there are."""
    available = min(numbers["max_connections"] - numbers["reserved_connections"], 10_000)
    try:
        budget = ConnectionBudget(**numbers)
    except BudgetExceeded:
        alive = BudgetTerms(**numbers).most_tasks_alive
        floor = numbers["floor_connections"] if alive > 1 else least_floor(numbers["pools"])
        assert alive * (floor + AGENT_CONNECTIONS) > available
        return
    assert budget.most_connections == available


@given(terms())
def test_ways_out_of_the_error_really_lead_out(numbers: dict[str, int]) -> None:
    """Following any advice of the message, to the letter, gives a budget that holds."""
    try:
        ConnectionBudget(**numbers)
    except BudgetExceeded as error:
        message = str(error)
        advice = re.split(r"\(\d\) ", message.partition(" out: ")[2])[1:]
        followed = [{name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", way)} for way in advice]
        assert followed == [dict(way) for way in ways_out(BudgetTerms(**numbers))]
        for changed in followed:
            assert changed
            assert ConnectionBudget(**{**numbers, **changed}).shared_slots >= 0
        assert len({tuple(changed.items()) for changed in followed}) == len(followed)
        one_task_fits = (numbers["surge"] + numbers["stopping_generations"] + numbers["other_tasks"]) * (
            least_floor(numbers["pools"]) + AGENT_CONNECTIONS
        )
        assert followed or one_task_fits > 10_000


@given(terms())
def test_there_are_three_ways_out_where_something_can_be_changed(numbers: dict[str, int]) -> None:
    """Who has several tasks and a floor above the least gets three ways out."""
    numbers["floor_connections"] += 1
    assume(numbers["max_tasks"] > 1)
    assume(BudgetTerms(**numbers).needed <= 10_000)
    assume(not BudgetTerms(**numbers).holds)
    with pytest.raises(BudgetExceeded, match=r"Three ways out: \(1\) .*\(3\)"):
        ConnectionBudget(**numbers)


@given(terms())
def test_proxy_takes_every_budget_that_holds(numbers: dict[str, int]) -> None:
    """Settings made of a proven budget are valid, and the proxy computes the same floor and the same slots."""
    try:
        budget = ConnectionBudget(**numbers)
    except BudgetExceeded:
        return
    settings = ProxySettings(
        database_host="h",
        database_name="d",
        database_user="u",
        database_password_file="p",
        client_secret_arn="c",
        pgbouncer_processes=numbers["pools"],
        max_server_connections=budget.max_server_connections,
        most_tasks_alive=budget.most_tasks_alive,
        floor_connections=budget.floor_connections,
        reserved_connections=budget.reserved_connections,
    )
    assert (settings.floor, settings.shared_slots) == (budget.floor, budget.shared_slots)


def test_error_shows_the_sum() -> None:
    """The message has every term, so that the reader can redo the sum."""
    with pytest.raises(BudgetExceeded) as caught:
        ConnectionBudget(50, 2, 4)
    assert str(caught.value) == (
        "the connection budget is exceeded: max_connections 50 - reserved 15 = 35 for the pool, but 4 x (2 while "
        "deploying + 1 still stopping) = 12 tasks x 4 (2 floor + 2 of the agent) = 48 at least. Three ways out: "
        "(1) a database with max_connections=63 or more; (2) max_tasks=2; (3) max_tasks=3 and floor_connections=1"
    )


def test_reserve_is_never_advised_away() -> None:
    """What PostgreSQL and RDS keep for themselves stays reserved in each advice; more may be given up."""
    with pytest.raises(BudgetExceeded, match=r"reserved_connections=13 or less"):
        ConnectionBudget(22, 1, 1, floor_connections=1)
    with pytest.raises(BudgetExceeded) as caught:
        ConnectionBudget(13, 1, 1, floor_connections=1, reserved_connections=8)
    assert "reserved_connections=" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_connections": 0}, "max_connections must be between 1 and 262143, got 0"),
        ({"max_connections": 100, "min_tasks": 0}, "min_tasks must be between 1 and 666, got 0"),
        ({"max_connections": 100, "min_tasks": 5, "max_tasks": 4}, "max_tasks must be between 5 and 666, got 4"),
        ({"max_connections": 100, "reserved_connections": -1}, "reserved_connections must be between 0"),
        ({"max_connections": 100, "floor_connections": 0}, "floor_connections must be between 1 and 1000, got 0"),
        ({"max_connections": 100, "other_tasks": -1}, "other_tasks must be between 0 and 1997, got -1"),
        (
            {"max_connections": 100, "pools": 4, "floor_connections": 6},
            "floor_connections must be at least 7 for the 4 pools of a task",
        ),
    ],
)
def test_count_out_of_range_is_refused_with_value_and_range(numbers: dict[str, int], message: str) -> None:
    """A wrong count gives one message with the value seen and the allowed range."""
    with pytest.raises(ValueError, match=re.escape(message)):
        ConnectionBudget(**numbers)


def test_tasks_that_still_stop_are_counted() -> None:
    """ECS does not count a task that stops, and it has its connections: a deployment has old, stopping and new ones."""
    budget = ConnectionBudget(100, 2, 4)
    assert budget.most_tasks_alive == 4 + 4 + 4


def test_task_that_is_alone_has_the_whole_budget_as_its_floor() -> None:
    """One task that never runs beside another shares with nobody; its agent's connections are still counted."""
    budget = ConnectionBudget(100, 1, 1, surge=1, stopping_generations=0)
    assert (budget.shares_budget, budget.shared_slots) == (False, 0)
    assert budget.floor == budget.max_server_connections == 100 - 15 - AGENT_CONNECTIONS
    assert "1, never beside another" in budget.as_table()


def test_budget_above_what_the_proxy_takes_is_cut() -> None:
    """A huge database gives the fleet as many connections as the proxy's own setting allows, and the table says so."""
    budget = ConnectionBudget(50_000)
    assert budget.budget == 10_000
    assert "the most that the proxy takes" in budget.as_table()


def test_table_and_metadata_tell_the_same_sum() -> None:
    """The terminal's table has every term, and the template's metadata the same numbers."""
    budget = ConnectionBudget(100, 2, 4)
    assert budget.as_table().splitlines() == [
        "Connection budget",
        "  max_connections of the database                                  100",
        "  reserved (superuser, RDS, operators, migrations)                 -15",
        "  budget of the fleet                                               85",
        "  most tasks alive: 4 x (2 while deploying + 1 still stopping)      12",
        "  floors, always there: 12 x 2                                     -24",
        "  agents' own: 12 x 2                                              -24",
        "  shared slots, for those whose clients wait                        37",
        "  most of one task: 2 + 37                                          39",
        "  of each of 2 tasks when all are busy                              20",
        "  12 x (2 + 2) + 37 = 85 <= 85: the limit holds, deployments included",
    ]
    shown: dict[str, Any] = budget.as_metadata()
    assert shown == {
        "MaxConnections": 100,
        "ReservedConnections": 15,
        "Budget": 85,
        "MinTasks": 2,
        "MaxTasks": 4,
        "OtherTasks": 0,
        "MostTasksAlive": 12,
        "FloorConnections": 2,
        "AgentConnections": 2,
        "SharedSlots": 37,
        "MostConnectionsPerTask": 39,
        "ConnectionsPerTaskAtMinTasks": 20,
        "MostConnections": 85,
    }
