"""The goals beside what was measured, and the table of all cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.data import memory
from benchmarks.data.memory import Memory
from benchmarks.data.servers import NUMBERED, RAW, SIGNED, UNSIGNED, YARDSTICKS
from benchmarks.data.speed import NAMES, Cell
from benchmarks.data.window import Load
from benchmarks.lines import Line
from benchmarks.series import Spread, differences, ratios
from rich.table import Table

GOAL_ADDED_MS = 1.0
GOAL_CPU_RATIO = 1.2
GOAL_SIGNATURE_US = 100.0
GOAL_TAIL_RATIO = 5.0
GOAL_GROWTH_MIB = 4.0
ONE, MANY = 1, 256
BUSY = 32  # connections at which the CPU time is compared: the server is busy, and its sockets hold one request each


def speed_lines(cells: Sequence[Cell]) -> list[Line]:
    """Return the goals, and for information what is not one."""
    lines: list[Line] = []
    for cell in cells:
        if cell.connections == ONE:
            added = differences(_of(cell, SIGNED, _p50), _of(cell, RAW, _p50))
            lines.append(Line(f"added p50 over psycopg, {_name(cell)}", "ms", added, 3, at_most=GOAL_ADDED_MS))
    for cell in cells:
        is_goal = cell.connections == BUSY
        fastest = [min(values) for values in zip(*(_of(cell, name, _cpu) for name in YARDSTICKS), strict=True)]
        unsigned, signed = _of(cell, UNSIGNED, _cpu), _of(cell, SIGNED, _cpu)
        lines += [
            Line(
                f"CPU of a request, unsigned, against the fastest yardstick, {_name(cell)}",
                "ratio",
                ratios(unsigned, fastest),
                2,
                at_most=GOAL_CPU_RATIO if is_goal else None,
            ),
            Line(
                f"CPU that a signature adds, {_name(cell)}",
                "us",
                differences(signed, unsigned),
                0,
                at_most=GOAL_SIGNATURE_US if is_goal else None,
            ),
        ]
        if is_goal:
            what = f"CPU that an invocation's id adds, {_name(cell)}"
            lines.append(Line(what, "us", differences(_of(cell, NUMBERED, _cpu), signed), 0))
    for cell in cells:
        if cell.connections == MANY:
            tail = ratios(_of(cell, SIGNED, _p99), _of(cell, SIGNED, _p50))
            lines.append(Line(f"p99 over p50, {_name(cell)}", "ratio", tail, 2, at_most=GOAL_TAIL_RATIO))
    return lines


def memory_lines(found: Memory) -> list[Line]:
    """Return how much the endpoint has grown since it remembered as many answers as it may."""
    before, *_ = (number for number in range(memory.PARTS) if found.requests[number] >= memory.FILLED)
    growth = found.mib[-1] - found.mib[before]
    what = f"memory after {found.requests[-1]:,} requests over that after {found.requests[before]:,}"
    return [Line(what, "MiB", [growth], 1, at_most=GOAL_GROWTH_MIB)]


def memory_text(found: Memory) -> str:
    """Return all that was seen."""
    seen = ", ".join(f"{mib:.1f} ({count:,})" for mib, count in zip(found.mib, found.requests, strict=True))
    return f"The endpoint's resident MiB: {found.before_mib:.1f}, then after requests: {seen}"


def cell_table(cells: Sequence[Cell]) -> Table:
    """Return the medians of every cell, with the least and the greatest."""
    table = Table("", "requests/s", "p50 ms", "p99 ms", "CPU us", "PgBouncer's", "agent's")
    for cell in cells:
        table.add_row(f"[bold]{_name(cell)}")
        for name in NAMES:
            loads = cell.loads[name]
            table.add_row(
                name,
                _spread([load.per_second for load in loads], 0),
                _spread([load.p50_ms for load in loads], 2),
                _spread([load.p99_ms for load in loads], 2),
                *(_cpu_text(loads, process) for process in ("server", "PgBouncer", "agent")),
                end_section=name == NAMES[-1],
            )
    return table


def _cpu_text(loads: Sequence[Load], process: str) -> str:
    values = [load.cpu_us[process] for load in loads if process in load.cpu_us]
    return _spread(values, 0) if values else ""


def _spread(values: Sequence[float], digits: int) -> str:
    return Spread.of(values).text(digits).replace(" to ", "-")  # narrow: seven columns


def _of(cell: Cell, name: str, value: Callable[[Load], float]) -> list[float]:
    return [value(load) for load in cell.loads[name]]


def _p50(load: Load) -> float:
    return load.p50_ms


def _p99(load: Load) -> float:
    return load.p99_ms


def _cpu(load: Load) -> float:
    return load.cpu_us["server"]


def _name(cell: Cell) -> str:
    return f"{cell.statement.name}, {cell.connections} connections".replace(" 1 connections", " 1 connection")
