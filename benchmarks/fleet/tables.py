"""The goals beside what was measured of a fleet in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.fleet import reaction, skew
from benchmarks.fleet.coordination import Cost, Costs
from benchmarks.fleet.reaction import Reaction, Reactions
from benchmarks.fleet.skew import Block
from benchmarks.lines import Line
from benchmarks.series import ratios

GOAL_REACTION_SECONDS = 1.0
GOAL_SKEW_RATIO = 0.95


def reaction_lines(found: Reactions) -> list[Line]:
    """Return how fast a burst on one task gets the free slots, and connections for them."""
    share = f"{reaction.SHARE:.0%} of {reaction.TERMS.slots} free slots"
    lines = []
    for kind, bursts in (("fleet awake", found.awake), ("fleet asleep", found.asleep)):
        what = f"burst on 1 of {reaction.TERMS.tasks} tasks, {kind}: until it holds {share}"
        lines.append(Line(what, "s", _slots(bursts), 2, at_most=GOAL_REACTION_SECONDS))
    for kind, bursts in (("fleet awake", found.awake), ("fleet asleep", found.asleep)):
        what = f"the same, {kind}: until PgBouncer has opened as many connections"
        lines.append(Line(what, "s", [burst.connections_seconds for burst in bursts], 2))
    return lines


def _slots(bursts: Sequence[Reaction]) -> list[float]:
    return [burst.slots_seconds for burst in bursts]


def skew_lines(found: Mapping[str, Sequence[Block]]) -> list[Line]:
    """Return the ratios of transactions a second, and how long clients waited."""
    shared, big, split = found[skew.SHARED], found[skew.BIG], found[skew.SPLIT]
    load = f"{skew.BUSY_SHARE:.0%} of the clients on one of {skew.TASKS} tasks"
    per_connection = skew.BUDGET / (skew.BUDGET - skew.TASKS * 2)
    from_the_start = ratios([block.rate(0) for block in shared], [block.rate(0) for block in big])
    against_big = ratios(_rates(shared), _rates(big))
    lines = [
        Line(f"{load}: transactions/s against one big pool", "ratio", against_big, 3, at_least=GOAL_SKEW_RATIO),
        Line("the same for each pool connection", "ratio", [one * per_connection for one in against_big], 3),
        Line("the same from the first second on, all pools cold", "ratio", from_the_start, 3),
        Line(f"{load}: transactions/s against an equal split", "ratio", ratios(_rates(shared), _rates(split)), 3),
    ]
    for name, blocks in found.items():
        for side in ("busy", "quiet"):
            waits = [getattr(block, side).wait_ms(skew.LEAD_IN_SECONDS) for block in blocks]
            lines.append(Line(f"mean wait of the {side} task's clients: {name}", "ms", waits, 1))
    return lines


def _rates(blocks: Sequence[Block]) -> list[float]:
    return [block.rate() for block in blocks]


def cost_lines(costs: Costs) -> list[Line]:
    """Return what real tasks cost the database and their agents."""
    lines = []
    for phases in costs.shared.values():
        for name, cost in phases.items():
            lines += _lines_of(name, cost, "tasks")
            what = f"{cost.tasks} tasks, {name}: one agent's CPU"
            lines.append(Line(what, "% of a core", [cost.agent_cpu_percent], 1))
    for name, percent in costs.alone_agent_cpu_percent.items():
        lines.append(Line(f"a task that is alone, {name}: its agent's CPU", "% of a core", [percent], 1))
    return lines


def simulated_lines(found: Mapping[str, Cost]) -> list[Line]:
    """Return what simulated tasks cost the database."""
    lines = []
    for name, cost in found.items():
        lines += _lines_of(name, cost, "simulated tasks")
        lines.append(Line(f"{cost.tasks} simulated tasks, {name}: a view", "ms", [cost.view_ms], 1))
        lines.append(Line(f"{cost.tasks} simulated tasks, {name}: lag of their process", "s", [cost.lag_seconds], 2))
    return lines


def _lines_of(name: str, cost: Cost, kind: str) -> list[Line]:
    what = f"{cost.tasks} {kind}, {name} ({cost.slots_held} slots held)"
    return [
        Line(f"{what}: statements of the coordination", "1/s", [cost.coordination_statements], 1),
        Line(f"{what}: of those, views of the fleet", "1/s", [cost.views], 1),
        Line(f"{what}: CPU of the control connections' backends", "% of a core", [cost.database_cpu_percent], 2),
    ]
