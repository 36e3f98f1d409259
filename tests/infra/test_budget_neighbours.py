"""Several pools before one database: their budgets hold together, or the synth fails and says what to give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.infra.conftest import PoolInAStack

from emberpool_cdk import BudgetExceeded, ConnectionBudget, PoolDatabase, PoolProxy
from emberpool_cdk.budget_neighbours import PlacedBudget, check_together

SERVER = "db.example.com:5432"


def _placed(name: str, *, path: str = "", database: str = "shop", **terms: Any) -> PlacedBudget:
    return PlacedBudget(path or name, SERVER, name, database, ConnectionBudget(**{"max_connections": 200, **terms}))


def test_budgets_that_leave_room_for_each_other_hold() -> None:
    """Two pools, each of which reserves what the other may use, fit into one database."""
    check_together([_placed("a", reserved_connections=100)], _placed("b", reserved_connections=100))


def test_two_budgets_of_the_whole_database_are_refused() -> None:
    """Each proof alone holds, both together would need nearly twice the limit: the message shows the sum."""
    with pytest.raises(BudgetExceeded, match=r"185 of a \+ 185 of b = 370, but max_connections is 200"):
        check_together([_placed("a")], _placed("b"))


@given(st.integers(2, 4), st.integers(200, 2000))
def test_advised_reserve_works_for_all_pools(pools: int, maximum: int) -> None:
    """With the message's reserved_connections the pools hold together and leave the usual reserve."""
    placed = [_placed(f"pool-{number}", max_connections=maximum) for number in range(pools)]
    with pytest.raises(BudgetExceeded) as caught:
        check_together(placed[:-1], placed[-1])
    (reserved,) = map(int, re.findall(r"reserved_connections=(\d+)", str(caught.value)))
    followed = [
        _placed(each.name, max_connections=maximum, max_tasks=2, reserved_connections=reserved) for each in placed
    ]
    check_together(followed[:-1], followed[-1])
    assert sum(each.budget.budget for each in followed) <= maximum - 15


def test_pools_of_one_budget_count_each_others_tasks() -> None:
    """With one name for both, the floors of all tasks are in each proof; forgotten ones are named with their number."""
    with pytest.raises(BudgetExceeded, match="give A other_tasks=6 and B other_tasks=12"):
        check_together([_placed("one", path="A")], _placed("one", path="B", max_tasks=2))
    check_together([_placed("one", path="A", other_tasks=6)], _placed("one", path="B", max_tasks=2, other_tasks=12))


def test_pools_of_one_budget_have_the_same_terms() -> None:
    """Two floors or two limits under one name would be two numbers of slots."""
    with pytest.raises(BudgetExceeded, match="A and B share the budget 'one', but not its terms"):
        check_together(
            [_placed("one", path="A", other_tasks=12)],
            _placed("one", path="B", other_tasks=12, floor_connections=3),
        )


def test_slots_in_two_databases_are_not_shared() -> None:
    """Advisory locks are seen within one database: the same name in two databases of a server is two budgets."""
    with pytest.raises(BudgetExceeded, match="give all the same budget_name and budget_database"):
        check_together([_placed("one", path="A")], _placed("one", path="B", database="stock"))


def test_second_pool_before_a_database_fails_the_synth(tmp_path: Path) -> None:
    """Two pools of an app that would each take the whole database are refused; before another one they are not."""
    users = PoolInAStack(tmp_path)
    with pytest.raises(BudgetExceeded, match=r"185 of Users/Pool \+ 185 of Users/Second = 370"):
        PoolProxy(users.stack, "Second", vpc=users.vpc, database=users.database)
    other = PoolDatabase(host="other.example.com", name="shop", secret=users.database.secret, max_connections=200)
    assert PoolProxy(users.stack, "Third", vpc=users.vpc, database=other).budget.budget == 185


def test_apps_do_not_see_each_other(tmp_path: Path) -> None:
    """A program may synthesize several apps for one database, staging and production of the same code for example."""
    first, second = PoolInAStack(tmp_path / "a"), PoolInAStack(tmp_path / "b")
    assert first.pool.budget == second.pool.budget
