"""The data endpoint's sections of the page: the lines of `tables`, and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.data import memory, tables
from benchmarks.data.memory import Memory
from benchmarks.data.speed import NAMES, Cell
from benchmarks.data.window import Load
from benchmarks.plots import Plot, Series
from benchmarks.section import Section
from benchmarks.series import Spread


def speed_section(cells: Sequence[Cell], repetitions: int, block_seconds: float, machine: str) -> Section:
    """Return latency, requests a second and CPU of every server."""
    statements = list(dict.fromkeys(cell.statement.name for cell in cells))
    plots = [
        _plot(statement, [cell for cell in cells if cell.statement.name == statement], title, unit, figure)
        for statement in statements
        for title, unit, figure in (
            ("requests a second", "1/s", lambda load: load.per_second),
            ("p99", "ms", lambda load: load.p99_ms),
            ("CPU of a request", "µs", lambda load: load.cpu_us["server"]),
        )
    ]
    return Section(
        "Data endpoint: requests",
        "SQL over HTTPS as the RDS Data API has it, against psycopg on the same PgBouncer and against two servers of a "
        "few lines that do less.",
        tables.speed_lines(cells),
        plots,
        f"{repetitions} alternating blocks of {block_seconds:g} s of each, a closed loop of HTTP clients in one "
        "process on the same machine, without TLS; ratios and differences are of the blocks of one repetition. "
        "psycopg has no server in between, so no CPU of it is shown.",
        machine,
    )


def memory_section(found: Memory, machine: str) -> Section:
    """Return how the endpoint's memory grows."""
    return Section(
        "Data endpoint: memory",
        f"Resident memory over many requests, each an invocation of its own whose answer is remembered: at most "
        f"{tables.GOAL_GROWTH_MIB:g} MiB more once it remembers as many as it may.",
        tables.memory_lines(found),
        [Plot("Resident memory", "lines", "requests", "MiB", [Series("emberpool", found.requests, found.mib)])],
        f"Before the first request {found.before_mib:.1f} MiB; {memory.CONNECTIONS} connections.",
        machine,
    )


def _plot(statement: str, cells: Sequence[Cell], title: str, unit: str, figure: Callable[[Load], float]) -> Plot:
    series = []
    for name in NAMES:
        measured = [cell for cell in cells if all("server" in load.cpu_us or unit != "µs" for load in cell.loads[name])]
        spreads = [Spread.of([figure(load) for load in cell.loads[name]]) for cell in measured]
        if spreads:
            series.append(
                Series(
                    name,
                    [cell.connections for cell in measured],
                    [spread.median for spread in spreads],
                    [spread.least for spread in spreads],
                    [spread.greatest for spread in spreads],
                )
            )
    return Plot(f"{statement}: {title}", "lines", "connections", unit, series, log_x=True)
