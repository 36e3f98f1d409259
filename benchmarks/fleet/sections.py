"""A fleet's sections of the page: the lines of `tables`, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.fleet import reaction, skew, tables
from benchmarks.fleet.coordination import Cost, Costs
from benchmarks.fleet.reaction import Reactions
from benchmarks.fleet.skew import Block, Side
from benchmarks.plots import Plot, bars
from benchmarks.section import Section


def skew_section(found: Mapping[str, Sequence[Block]], machine: str) -> Section:
    """Return what skewed load gets of a shared budget."""
    rates = {name: [block.rate() for block in blocks] for name, blocks in found.items()}
    waits = [
        bars(f"{side} clients", {name: [_wait_ms(block, side) for block in blocks] for name, blocks in found.items()})
        for side in ("busy", "quiet")
    ]
    return Section(
        "Fleet: one budget under skewed load",
        f"{skew.TASKS} tasks share a budget of {skew.BUDGET} server connections, {skew.BUSY_SHARE:.0%} of the clients "
        "are on one of them: slots by demand, against one big pool with all of the budget and against an equal split. "
        f"At least {tables.GOAL_SKEW_RATIO:g} of the big pool is wanted, and well above the split.",
        tables.skew_lines(found),
        [
            Plot("Transactions a second", "bars", "", "1/s", [bars("1/s", rates)], note="Higher is better."),
            Plot("Mean wait of the clients", "bars", "", "ms", waits, note="Lower is better."),
        ],
        f"{len(rates[skew.SHARED])} alternating blocks by pgbench with {skew.CLIENTS} clients; each transaction holds "
        f"its connection for {skew.HOLD_MS} ms, so that connections are short and not this machine's cores. The first "
        f"{skew.LEAD_IN_SECONDS} s of a block are left out. The shared fleet's agents have two connections of the "
        "budget for each task, which the big pool has for its clients.",
        machine,
    )


def _wait_ms(block: Block, side: str) -> float:
    clients: Side = getattr(block, side)
    return clients.wait_ms(skew.LEAD_IN_SECONDS)


def reaction_section(found: Reactions, machine: str) -> Section:
    """Return how fast slots follow a burst."""
    bursts = {
        "slots held, fleet awake": [one.slots_seconds for one in found.awake],
        "slots held, fleet asleep": [one.slots_seconds for one in found.asleep],
        "connections open, fleet awake": [one.connections_seconds for one in found.awake],
        "connections open, fleet asleep": [one.connections_seconds for one in found.asleep],
    }
    return Section(
        "Fleet: how fast slots follow a burst",
        f"A burst on one of {reaction.TERMS.tasks} tasks: until it holds {reaction.SHARE:.0%} of "
        f"{reaction.TERMS.slots} free slots, at most {tables.GOAL_REACTION_SECONDS:g} s is wanted.",
        tables.reaction_lines(found),
        [Plot("From the burst on", "bars", "", "s", [bars("s", bursts)], note="Lower is better.")],
        f"{len(found.awake)} bursts of each kind, on each task in turn; the clients are connected before. PgBouncer "
        "opens connections one after the other.",
        machine,
    )


def cost_section(found: Costs, machine: str) -> Section:
    """Return what the coordination of real tasks costs."""
    by_fleet = {
        f"{cost.tasks} tasks, {name}": cost for phases in found.shared.values() for name, cost in phases.items()
    }
    return Section(
        "Fleet: what the coordination costs",
        "Statements about slots in the database, their CPU there, and the agents' CPU; without load, under steady "
        "load, and while tasks fight for slots.",
        tables.cost_lines(found),
        _cost_plots(by_fleet),
        "Counted by pg_stat_statements and by the processes' CPU. Clients, tasks and database share this machine.",
        machine,
    )


def simulated_section(found: Mapping[str, Cost], machine: str) -> Section:
    """Return what the coordination of simulated tasks costs a real database."""
    return Section(
        "Fleet: the coordination of hundreds of tasks",
        "As many control connections as hundreds of tasks have, in one process, against a real database.",
        tables.simulated_lines(found),
        _cost_plots({f"{cost.tasks} tasks, {name}": cost for name, cost in found.items()}),
        "Counted by pg_stat_statements and by the backends' CPU.",
        machine,
    )


def _cost_plots(costs: Mapping[str, Cost]) -> list[Plot]:
    statements = {name: [cost.coordination_statements] for name, cost in costs.items()}
    cpu = {name: [cost.database_cpu_percent] for name, cost in costs.items()}
    return [
        Plot("Statements of the coordination", "bars", "", "1/s", [bars("1/s", statements)]),
        Plot("CPU of the control connections' backends", "bars", "", "% of a core", [bars("%", cpu)]),
    ]
