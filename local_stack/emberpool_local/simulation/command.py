"""The command of the simulation: what it is asked, and how it prints what came out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from emberpool_local.simulation.plan import plan_of
from emberpool_local.simulation.scale import ScaleResult, run_large
from emberpool_local.simulation.shortest import shortest
from emberpool_local.simulation.world import run

EXIT_BROKEN = 1
MOST_TASKS, MOST_ENVIRONMENTS = 2_000, 1_000_000
WIDTH = 44


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; return 1 if a promise was broken."""
    asked = _parser().parse_args(arguments)
    if asked.worlds:
        return _small_worlds(asked.seed, asked.worlds)
    print("simulating; 500 tasks take a minute or two", file=sys.stderr, flush=True)  # noqa: T201 (for a person)
    result = run_large(asked.tasks, asked.environments, asked.seconds, asked.seed)
    print(json.dumps(asdict(result), indent=2) if asked.json else large_text(result))  # noqa: T201 (the command's output)
    return EXIT_BROKEN if result.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emberpool simulate", description=__doc__)
    parser.add_argument("--tasks", type=_count(2, MOST_TASKS), default=500)
    parser.add_argument("--environments", type=_count(1, MOST_ENVIRONMENTS), default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual seconds; the burst is at 15")
    parser.add_argument("--seed", type=int, default=1, help="the same seed runs the same way")
    parser.add_argument("--worlds", type=_count(1, 1_000_000), help="instead: so many small worlds with faults")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


class _count:  # noqa: N801 (argparse prints its name)
    """An integer within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        value = int(text)
        if not self._least <= value <= self._most:
            raise argparse.ArgumentTypeError(f"must be from {self._least} to {self._most}, got {value}")
        return value


def _small_worlds(seed: int, worlds: int) -> int:
    broken = 0
    for one in range(seed, seed + worlds):
        outcome = run(plan_of(one))
        if outcome.broken:
            broken += 1
            print(shortest(outcome), flush=True)  # noqa: T201 (the command's output)
    print(f"{worlds} worlds from seed {seed}: {broken} with a broken promise")  # noqa: T201 (the command's output)
    return EXIT_BROKEN if broken else 0


def large_text(result: ScaleResult) -> str:
    """Return the result as lines for a terminal."""
    converged = "not within the run" if result.converged_seconds is None else f"{result.converged_seconds:.1f} s"
    rows = (
        ("seed, tasks, environments", f"{result.seed}, {result.tasks:,}, {result.environments:,}"),
        ("budget, of it slots", f"{result.budget:,}, {result.slots:,}"),
        ("most connections at once", f"{result.most_connections:,}"),
        ("broken promise", result.broken or "none"),
        ("90% of their slots at work in the burst's tasks", converged),
        ("fairness at the end (Jain's index), worst task", f"{result.fairness:.3f}, {result.worst_task:.2f}"),
        ("slots held at the end", f"{result.slots_held:,}"),
        (
            "moves of slots; a slot and minute at the end",
            f"{result.moves:,}; {result.moves_per_slot_and_minute_at_the_end:.2f}",
        ),
        ("fleet views a second", f"{result.views_per_second:.1f}"),
        ("queries a second, in the busiest", f"{result.queries_per_second:.1f}, {result.busiest_second_queries:,}"),
        ("decisions, transactions, events", f"{result.steps:,}, {result.transactions:,}, {result.events:,}"),
    )
    return "\n".join(f"{name:<{WIDTH}}  {value}" for name, value in rows)
