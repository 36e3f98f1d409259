"""The goals, figures and plots of storms of cold starts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series
from benchmarks.proxy.clients import Storm
from benchmarks.proxy.cold_start import BARE_RAISED, MAX_CONNECTIONS, NAMES, Storms
from benchmarks.proxy.contenders import OURS, POOL_SIZE
from benchmarks.section import Section
from benchmarks.series import ratios


def cold_start_section(found: Storms, repetitions: int, machine: str) -> Section:
    """Return all that the page says of it."""
    return Section(
        title="Cold-start storm",
        claim="However many environments start at once, none fails, and the last has its first row sooner than with a "
        "bare PgBouncer.",
        lines=cold_start_lines(found),
        plots=_plots(found),
        method=(
            f"{repetitions} repetitions, in each all ways in a random order and each started anew. The clients of one "
            "process, which shares the machine with the pool, log in at once over TLS and SCRAM, ask for one row, and "
            f"stay. The database allows {MAX_CONNECTIONS} connections, both pools have {POOL_SIZE}. The bare PgBouncer "
            "has Debian's pgbouncer.ini with transactions as what it pools and TLS, once as it is (max_client_conn is "
            "100) and once with max_client_conn above the clients: the time of its last row is the one that ours is "
            "compared with. A client that is refused fails: it does not try again."
        ),
        machine=machine,
    )


def cold_start_lines(found: Storms) -> list[Line]:
    """Return failures and the last row of each storm."""
    lines = []
    for count, ways in found.items():
        ours, bare = _last_rows(ways[OURS]), _last_rows(ways[BARE_RAISED])
        # Their sum: the median would hide the storm in which one failed.
        failed = [float(sum(map(_failed, ways[OURS])))]
        lines.append(Line(f"{count:,} clients at once: failed in all storms", "", failed, 0, at_most=0))
        what = f"{count:,} clients at once: time to the last row against {BARE_RAISED}"
        lines.append(Line(what, "ratio", ratios(ours, bare), 2, at_most=1.0))
    for count, ways in found.items():
        for name, storms in ways.items():
            lines.append(Line(f"{count:,} clients, {name}: last row", "s", _last_rows(storms), 2))
            if name != OURS:
                lines.append(
                    Line(f"{count:,} clients, {name}: failed", "", [float(_failed(each)) for each in storms], 0)
                )
    return lines


def _plots(found: Storms) -> list[Plot]:
    counts = [f"{count:,} clients" for count in found]
    failed = [
        Series(name, counts, [statistics.median(map(_failed, ways[name])) for ways in found.values()]) for name in NAMES
    ]
    served = [_served(count, ways) for count, ways in found.items()]
    failures = Plot(
        "Clients that failed",
        "bars",
        "",
        "clients",
        failed,
        note="Median; fewer is better, and a way without a bar had none.",
    )
    return [*served, failures]


def _served(count: int, ways: Mapping[str, list[Storm]]) -> Plot:
    series = []
    for name, storms in ways.items():
        storm = sorted(storms, key=_last_row)[len(storms) // 2]
        got = count - _failed(storm)
        parts = max(len(storm.moments) - 1, 1)
        rows = [got * part / parts for part in range(len(storm.moments))]
        series.append(Series(name, [0.0, *storm.moments], [0.0, *rows]))
    return Plot(
        f"{count:,} clients at once: those that have their first row",
        "lines",
        "seconds since all of them started",
        "clients",
        series,
        note="The repetition with the median last row. Higher and further left is better; a line that ends low left "
        "the others refused.",
    )


def _last_rows(storms: Sequence[Storm]) -> list[float]:
    return [_last_row(storm) for storm in storms]


def _last_row(storm: Storm) -> float:
    return storm.moments[-1] if storm.moments else storm.seconds


def _failed(storm: Storm) -> int:
    return sum(storm.failures.values())
