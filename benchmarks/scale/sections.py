"""What simulated fleets of growing size did, as lines and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series
from benchmarks.section import Section
from benchmarks.series import Spread

from emberpool_local.simulation.scale import BURST_ENVIRONMENTS, BURST_TASKS, CALM_SECONDS, CONVERGED, ScaleResult

Found = Mapping[int, Sequence[ScaleResult]]  # by the number of tasks, one result for each seed


def scale_section(found: Found, virtual_seconds: float) -> Section:
    """Return the section: budget, convergence, fairness and cost by the size of the fleet."""
    largest = found[max(found)][0]
    return Section(
        "Scale, simulated",
        f"Fleets of up to {max(found):,} tasks and {largest.environments:,} environments that share one budget, run by "
        "the agent's own decisions in virtual time, judged at each step by the same promises as the failure lab. "
        "Wanted: no promise broken, and the budget never exceeded.",
        lines(found, virtual_seconds),
        [
            _plot(found, "Until the slots are where the clients are", "virtual s", converged(virtual_seconds), "least"),
            _plot(found, "Fairness", "Jain's index", lambda one: one.fairness, "most"),
            _plot(found, "Statements in the database", "1/s", lambda one: one.queries_per_second, "least"),
        ],
        f"Computed, not measured on servers: {len(found[max(found)])} seeds of each size, {virtual_seconds:g} virtual "
        f"seconds; environments are spread evenly, and from a moment on {BURST_ENVIRONMENTS:.0%} of them are at "
        f"{BURST_TASKS:.0%} of the tasks. Convergence: from then until those tasks have {CONVERGED:.0%} of the slots "
        "that they are due at work. Fairness: Jain's index of what hungry tasks have of their fair share in the last "
        f"{CALM_SECONDS:g} s; 1 is perfect.",
        "",
    )


def lines(found: Found, virtual_seconds: float) -> list[Line]:
    """Return the promises and the figures, size by size."""
    shown = []
    for tasks, results in found.items():
        what = f"{tasks:,} tasks, {results[0].environments:,} environments"
        broken = [float(bool(one.broken)) for one in results]
        used = [one.most_connections / one.budget for one in results]
        shown += [
            Line(f"{what}: runs that broke a promise", "", broken, 0, at_most=0),
            Line(f"{what}: most connections at once, of the budget", "ratio", used, 3, at_most=1),
            Line(f"{what}: convergence", "virtual s", [converged(virtual_seconds)(one) for one in results], 1),
            Line(f"{what}: fairness", "", [one.fairness for one in results], 3),
            Line(f"{what}: the worst task's part of its share", "", [one.worst_task for one in results], 2),
            Line(f"{what}: statements in the database", "1/s", [one.queries_per_second for one in results], 1),
            Line(f"{what}: views of the fleet", "1/s", [one.views_per_second for one in results], 1),
        ]
    return shown


def converged(virtual_seconds: float) -> Callable[[ScaleResult], float]:
    """Return what reads a result's convergence; a run that did not converge counts with its whole length."""
    return lambda one: virtual_seconds if one.converged_seconds is None else one.converged_seconds


def _plot(found: Found, title: str, unit: str, figure: Callable[[ScaleResult], float], best: str) -> Plot:
    spreads = [Spread.of([figure(one) for one in results]) for results in found.values()]
    series = Series(
        "emberpool",
        list(found),
        [spread.median for spread in spreads],
        [spread.least for spread in spreads],
        [spread.greatest for spread in spreads],
    )
    note = "Lower is better." if best == "least" else "Higher is better."
    return Plot(title, "lines", "tasks", unit, [series], log_x=True, note=note)
