"""Whether the budgets of several pools before one database hold together: each one's proof knows only its own.

Sees the pools of one app; what other apps deploy to the same database has to be counted by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from constructs import Construct, IConstruct

from emberpool_cdk.connection_budget import RESERVED_CONNECTIONS, BudgetExceeded, ConnectionBudget


@dataclass(frozen=True)
class PlacedBudget:
    """A pool's budget and where it counts: `server` is the database's host and port.

    Pools with the same `name` share their slots, if those are in the same `database`: they are advisory locks, which
    are seen within one database of a server only.
    """

    path: str
    server: str
    name: str
    database: str
    budget: ConnectionBudget


# By the app: a program may synthesize several. Not weak: jsii would make a new object for an app that only it holds.
_PLACED: dict[IConstruct, list[PlacedBudget]] = {}


def place(scope: Construct, placed: PlacedBudget) -> None:
    """Remember the budget of a pool. Raises BudgetExceeded when it does not hold beside the app's other ones."""
    others = _PLACED.setdefault(scope.node.root, [])
    check_together([each for each in others if each.server == placed.server], placed)
    others.append(placed)


def check_together(others: Iterable[PlacedBudget], placed: PlacedBudget) -> None:
    """Raise BudgetExceeded when `placed` and the other budgets of the same server need more than it allows."""
    budgets: dict[tuple[str, str], list[PlacedBudget]] = {}
    for each in (*others, placed):
        budgets.setdefault((each.name, each.database), []).append(each)
    for sharing in budgets.values():
        _check_common(sharing)
    _check_separate([sharing[0] for sharing in budgets.values()])


def _check_common(sharing: Sequence[PlacedBudget]) -> None:
    own = [each.budget.most_tasks_alive - each.budget.other_tasks for each in sharing]
    advice = " and ".join(
        f"{each.path} other_tasks={sum(own) - tasks}" for each, tasks in zip(sharing, own, strict=True)
    )
    name = f"the pools {' and '.join(each.path for each in sharing)} share the budget {sharing[0].name!r}"
    if any(each.budget.most_tasks_alive < sum(own) for each in sharing):
        raise BudgetExceeded(f"{name}, so each must count the tasks of the others: give {advice}")
    terms = {(each.budget.budget, each.budget.floor_connections, each.budget.most_tasks_alive) for each in sharing}
    if len(terms) > 1:
        raise BudgetExceeded(
            f"{name}, but not its terms: give them the same max_connections, reserved_connections and "
            f"floor_connections, and {advice}"
        )


def _check_separate(separate: Sequence[PlacedBudget]) -> None:
    limit = min(each.budget.max_connections for each in separate)
    total = sum(each.budget.budget for each in separate)
    if len(separate) > 1 and total > limit:
        shown = " + ".join(f"{each.budget.budget} of {each.path}" for each in separate)
        reserved = limit - (limit - RESERVED_CONNECTIONS) // len(separate)
        raise BudgetExceeded(
            f"the budgets of the pools before one database exceed it together: {shown} = {total}, but max_connections "
            f"is {limit}. To each pool the others' connections are reserved ones: give each "
            f"reserved_connections={reserved}, for example; or give all the same budget_name and budget_database, and "
            "each the tasks of the others as other_tasks"
        )
