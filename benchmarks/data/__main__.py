"""`python -m benchmarks.data` (make bench-data): the data endpoint against raw psycopg and two servers of a few lines.

Requests a second, latency, CPU of a request with signatures and without, memory: with their spread, the goals beside
them. All go through one PgBouncer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import (
    Progress,
    add_outputs,
    at_least_one,
    clear_errors,
    line_results,
    machine_line,
    make_console,
    progress_on,
    write_page,
    write_results,
)
from benchmarks.data import memory, sections, speed, tables
from benchmarks.data.servers import Rig, running
from benchmarks.lines import Line, show
from benchmarks.proxy.clients import allow_descriptors
from benchmarks.proxy.pair import running_database
from benchmarks.section import Section
from rich.console import Console

from emberpool_local.burst.machine import this_machine
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import find_pgbouncer

PARTS = ("speed", "memory")
CONNECTIONS = (tables.ONE, tables.BUSY, tables.MANY)
DESCRIPTORS = 4096
MEMORY_REQUESTS, FEWER_MEMORY_REQUESTS = 1_000_000, 300_000  # the first takes ten minutes


@dataclass(frozen=True)
class Options:
    """The command line."""

    parts: tuple[str, ...]
    repetitions: int
    block_seconds: float
    connections: tuple[int, ...]
    requests: int
    output: Path | None
    page: Path | None


def main() -> None:
    """Measure, print, and write the JSON file and the page."""
    options = _options()
    with clear_errors():
        lines = _measure(options)
    sys.exit(any(line.is_met is False for line in lines))


def _measure(options: Options) -> list[Line]:
    console = make_console()
    allow_descriptors(DESCRIPTORS)
    began, progress = time.monotonic(), progress_on(console)
    pgbouncer = find_pgbouncer(console.print)  # the first time it is built: not while something is measured
    with running_database() as database, TempFolder("bench") as folder:
        machine = this_machine(str(database.postgres.program.version), ".".join(map(str, pgbouncer.version)))
        console.print(machine_line(machine))
        with running(database, pgbouncer, folder) as rig:
            shown, found = _measured(options, rig, console, machine_line(machine), progress)
    lines = [line for section in shown for line in section.lines]
    seconds = time.monotonic() - began
    show(console, lines)
    console.print(_method(options, seconds))
    write_results(options.output, line_results(machine, options, lines, seconds, shown) | found)
    write_page(options.page, shown, "make bench-data")
    return lines


def _measured(
    options: Options, rig: Rig, console: Console, machine: str, progress: Progress
) -> tuple[list[Section], dict[str, Any]]:
    shown: list[Section] = []
    found: dict[str, Any] = {}
    if "speed" in options.parts:
        cells = speed.measure(rig, options.connections, options.repetitions, options.block_seconds, progress)
        console.print(tables.cell_table(cells))
        shown.append(sections.speed_section(cells, options.repetitions, options.block_seconds, machine))
        found["cells"] = [asdict(cell) for cell in cells]
    if "memory" in options.parts:
        grown = memory.measure(rig, options.requests, progress)
        console.print(tables.memory_text(grown))
        shown.append(sections.memory_section(grown, machine))
        found["memory"] = asdict(grown)
    return shown, found


def _method(options: Options, seconds: float) -> str:
    return (
        f"Medians; a goal is met when the median meets it. {options.repetitions} alternating blocks of "
        f"{options.block_seconds:g} s of each, a closed loop of HTTP clients in one process on the same machine, "
        "without TLS; ratios and differences are of the blocks of one repetition. psycopg reaches the same PgBouncer "
        "by TCP, the servers by its socket; all servers run in uvloop's loop. The signed request is made once for "
        "each block: what signing costs the client is not in it. CPU is that of the whole process over the measured "
        "seconds, from /proc. Memory: each request is an invocation of its own, whose answer is remembered. Load "
        f"average at the end {os.getloadavg()[0]:.1f}; measured in {seconds:.0f} s."
    )


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times (default: all)")
    parser.add_argument("--repetitions", type=at_least_one, default=5, help="blocks of each (default 5)")
    parser.add_argument("--block-seconds", type=float, default=1.0, help="each block (default 1)")
    parser.add_argument(
        "--connections", type=at_least_one, nargs="+", default=CONNECTIONS, help="of the clients (default 1 32 256)"
    )
    parser.add_argument(
        "--requests",
        type=at_least_one,
        help=f"memory: (default {MEMORY_REQUESTS:,} with --only memory, else {FEWER_MEMORY_REQUESTS:,})",
    )
    add_outputs(parser)
    given = parser.parse_args()
    if not given.block_seconds > 0:
        parser.error(f"--block-seconds must be above 0, got {given.block_seconds:g}")
    requests = given.requests or (MEMORY_REQUESTS if given.only == ["memory"] else FEWER_MEMORY_REQUESTS)
    if requests < 2 * memory.FILLED:
        parser.error(f"--requests must be at least {2 * memory.FILLED:,}, got {requests:,}")
    return Options(
        parts=tuple(given.only or PARTS),
        repetitions=given.repetitions,
        block_seconds=given.block_seconds,
        connections=tuple(given.connections),
        requests=requests,
        output=given.output,
        page=given.page,
    )


if __name__ == "__main__":
    main()
