"""How a connection budget is shown: its table, its metadata, and the message with ways out when it does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from emberpool_cdk.budget_terms import BudgetTerms, least_floor
from emberpool_proxy.settings import AGENT_CONNECTIONS

MOST_WAYS_OUT = 3
# Below that nobody could log in any more: PostgreSQL keeps 3 for superusers, RDS keeps 2.
LEAST_RESERVED = 5
COUNT_WORDS = ("There is no way out", "One way out", "Two ways out", "Three ways out")
# Read back by whoever follows the advice: as the fields are named.
PHRASES = {
    "max_connections": "a database with max_connections={} or more",
    "min_tasks": "min_tasks={}",
    "max_tasks": "max_tasks={}",
    "floor_connections": "floor_connections={}",
    "reserved_connections": "reserved_connections={} or less",
}


def metadata(budget: BudgetTerms) -> dict[str, int]:
    """Return every term of the sum by its name."""
    return {
        "MaxConnections": budget.max_connections,
        "ReservedConnections": budget.reserved_connections,
        "Budget": budget.budget,
        "MinTasks": budget.min_tasks,
        "MaxTasks": budget.max_tasks,
        "OtherTasks": budget.other_tasks,
        "MostTasksAlive": budget.most_tasks_alive,
        "FloorConnections": budget.floor,
        "AgentConnections": AGENT_CONNECTIONS,
        "SharedSlots": budget.shared_slots,
        "MostConnectionsPerTask": budget.most_per_task,
        "ConnectionsPerTaskAtMinTasks": budget.share_at_min_tasks,
        "MostConnections": budget.most_connections,
    }


def table(budget: BudgetTerms) -> str:
    """Return the sum as lines of text."""
    alive, floor, slots = budget.most_tasks_alive, budget.floor, budget.shared_slots
    rows = [
        ("max_connections of the database", f"{budget.max_connections}"),
        ("reserved (superuser, RDS, operators, migrations)", f"-{budget.reserved_connections}"),
        (f"budget of the fleet{_cap(budget)}", f"{budget.budget}"),
        (f"most tasks alive: {_tasks(budget)}", f"{alive}"),
        (f"floors, always there: {alive} x {floor}", f"-{alive * floor}"),
        (f"agents' own: {alive} x {AGENT_CONNECTIONS}", f"-{alive * AGENT_CONNECTIONS}"),
        ("shared slots, for those whose clients wait", f"{slots}"),
        (f"most of one task: {floor} + {slots}{_spare(budget)}", f"{budget.most_per_task}"),
        (f"of each of {budget.min_tasks} tasks when all are busy", f"{budget.share_at_min_tasks}"),
    ]
    wide = max(len(label) for label, _ in rows)
    body = [f"  {label:<{wide}}  {value:>6}" for label, value in rows]
    total = f"{alive} x ({floor} + {AGENT_CONNECTIONS}) + {slots} = {budget.most_connections}"
    return "\n".join(
        ["Connection budget", *body, f"  {total} <= {budget.budget}: the limit holds, deployments included"]
    )


def exceeded(budget: BudgetTerms) -> str:
    """Return the message for a budget that does not hold: its sum, and changes that were tried and work."""
    ways = ways_out(budget)
    shown = [" and ".join(PHRASES[name].format(value) for name, value in way.items()) for way in ways]
    numbered = "; ".join(f"({number}) {text}" for number, text in enumerate(shown, start=1))
    return (
        "the connection budget is exceeded: "
        f"max_connections {budget.max_connections} - reserved {budget.reserved_connections} = "
        f"{budget.max_connections - budget.reserved_connections} for the pool, but {_tasks(budget)} = "
        f"{budget.most_tasks_alive} tasks x {budget.least_per_task} ({budget.least_per_task - AGENT_CONNECTIONS} floor "
        f"+ {AGENT_CONNECTIONS} of the agent) = {budget.needed} at least. {COUNT_WORDS[len(ways)]}: {numbered}"
    )


def ways_out(budget: BudgetTerms) -> list[Mapping[str, int]]:
    """Return up to three sets of changed fields that make the budget hold, the one that changes least first."""
    found: list[Mapping[str, int]] = []
    for way in _candidates(budget):
        changed = {name: value for name, value in way.items() if value != getattr(budget, name)}
        if changed and changed not in found and _holds(budget, changed):
            found.append(changed)
        if len(found) == MOST_WAYS_OUT:
            break
    return found


def _candidates(budget: BudgetTerms) -> Iterator[dict[str, int]]:
    yield {"max_connections": budget.needed + budget.reserved_connections}
    yield _fewer_tasks(budget, budget.least_per_task)
    floor = budget.budget // budget.most_tasks_alive - AGENT_CONNECTIONS
    yield {"floor_connections": min(floor, budget.floor_connections)}
    yield {"reserved_connections": max(budget.max_connections - budget.needed, LEAST_RESERVED)}
    least = least_floor(budget.pools)
    yield {**_fewer_tasks(budget, least + AGENT_CONNECTIONS), "floor_connections": least}
    # Neither alone is enough: a larger database for a smaller fleet.
    for tasks in (max(budget.max_tasks // 2, 1), 1):
        for floor in (budget.floor_connections, least):
            alive = tasks * budget.generations + budget.other_tasks
            yield {
                "max_connections": alive * (floor + AGENT_CONNECTIONS) + budget.reserved_connections,
                "min_tasks": min(budget.min_tasks, tasks),
                "max_tasks": tasks,
                "floor_connections": floor,
            }


def _fewer_tasks(budget: BudgetTerms, per_task: int) -> dict[str, int]:
    fitting = (budget.budget // per_task - budget.other_tasks) // budget.generations
    tasks = min(fitting, budget.max_tasks)
    return {"min_tasks": min(budget.min_tasks, tasks), "max_tasks": tasks}


def _holds(budget: BudgetTerms, changed: Mapping[str, int]) -> bool:
    try:
        return BudgetTerms(**{**asdict(budget), **changed}).holds
    except ValueError:
        return False


def _cap(budget: BudgetTerms) -> str:
    is_capped = budget.budget < budget.max_connections - budget.reserved_connections
    return ", the most that the proxy takes" if is_capped else ""


def _tasks(budget: BudgetTerms) -> str:
    if not budget.shares_budget:
        return "1, never beside another"
    times = f"{budget.surge} while deploying"
    if budget.stopping_generations:
        times = f"({times} + {budget.stopping_generations} still stopping)"
    others = f" + {budget.other_tasks} of other fleets" if budget.other_tasks else ""
    return f"{budget.max_tasks} x {times}{others}"


def _spare(budget: BudgetTerms) -> str:
    return f" - {budget.pools - 1} spare, one a further pool" if budget.pools > 1 else ""
