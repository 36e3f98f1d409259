"""The goals, figures and plots of recovery."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series
from benchmarks.proxy.contenders import OURS
from benchmarks.proxy.observation import PLAN, RATE_SECONDS, RATES_FROM, SHARE, WINDOW_SECONDS, Recovery
from benchmarks.proxy.recovery import DATABASE_AWAY, POOL_KILLED, POOL_REPLACED, Recoveries
from benchmarks.proxy.replacement import STOP_TIMEOUT_SECONDS
from benchmarks.section import Section

GOAL_SECONDS = 1.0
# (from when to when, the plot's axis)
WORDS = {
    DATABASE_AWAY: (f"from its return until {SHARE:.0%} of the load is served", "since the database is back"),
    POOL_KILLED: (f"from then until {SHARE:.0%} of the load is served", "since the kill"),
    POOL_REPLACED: (
        f"how long less than {SHARE:.0%} of the load is served",
        "since the old one was told to end",
    ),
}


def recovery_section(found: Recoveries, repetitions: int, outage_seconds: float, machine: str) -> Section:
    """Return all that the page says of it."""
    return Section(
        title="Recovery",
        claim="Within a second of the database's return all of the load is served again.",
        lines=recovery_lines(found),
        plots=[_plot(fault, ways) for fault, ways in found.items()],
        method=(
            f"{repetitions} repetitions, in each both ways in a random order and each started anew. "
            f"{PLAN.clients} clients ask for a row every {PLAN.period_seconds:g} s, over TLS and SCRAM; one that is "
            "told of an error logs in again when it asks next. It has recovered from the moment on from which each "
            f"{WINDOW_SECONDS:g} s have {SHARE:.0%} of what was served before, for a second at least. The database is "
            f"stopped (fast) and away for {outage_seconds:g} s. PgBouncer is killed (SIGKILL); the bare one is started "
            "again at once by the benchmark, emberpool's by its agent. A pool is replaced behind a balancer as ECS "
            "does it: the new one starts first, then the old one is told to end (SIGTERM) and, if it has not, is "
            f"killed after {STOP_TIMEOUT_SECONDS:g} s. The bare PgBouncer has Debian's pgbouncer.ini with transactions "
            "as what it pools and TLS."
        ),
        machine=machine,
    )


def recovery_lines(found: Recoveries) -> list[Line]:
    """Return the seconds and the errors of each fault."""
    lines = []
    for fault, ways in found.items():
        what = f"{fault}: {WORDS[fault][0]}"
        lines.append(Line(what, "s", [each.seconds for each in ways[OURS]], 2, at_most=GOAL_SECONDS))
    for fault, ways in found.items():
        for name, recoveries in ways.items():
            if name != OURS:
                lines.append(Line(f"{fault}: the same, {name}", "s", [each.seconds for each in recoveries], 2))
            failed = [float(each.failed) for each in recoveries]
            lines.append(Line(f"{fault}: clients told of an error, {name}", "", failed, 0))
    return lines


def _plot(fault: str, ways: Mapping[str, list[Recovery]]) -> Plot:
    series = []
    for name, recoveries in ways.items():
        known = min(len(each.rates) for each in recoveries)
        x = [RATES_FROM + (step + 0.5) * RATE_SECONDS for step in range(known)]
        columns = [[each.rates[step] for each in recoveries] for step in range(known)]
        series.append(Series(name, x, [statistics.median(column) for column in columns]))
    return Plot(
        f"What is served when {fault}",
        "lines",
        f"seconds {WORDS[fault][1]}",
        "answers/s",
        series,
        note="Median of the repetitions. The clients ask for "
        f"{PLAN.per_second:g} a second; a line ends where its way had recovered.",
    )
