"""`python -m benchmarks.fleet` (make bench-fleet): tasks that share one connection budget.

How fast slots follow a burst, what skewed load gets of a shared budget, and what the coordination costs the database.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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
from benchmarks.fleet import coordination, reaction, sections, simulated, skew
from benchmarks.lines import show
from benchmarks.proxy.clients import allow_descriptors
from benchmarks.section import Section

from emberpool_local.burst.machine import this_machine
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram, find_pgbouncer
from emberpool_local.postgres.program import find_postgres

PARTS = ("reaction", "skew", "cost", "simulated")
DESCRIPTORS_PER_TASK = 4
SPARE_DESCRIPTORS = 1000


@dataclass(frozen=True)
class Options:
    """The command line."""

    parts: tuple[str, ...]
    repetitions: int
    block_seconds: int
    cost_seconds: float
    tasks: tuple[int, ...]
    simulated_tasks: int
    output: Path | None
    page: Path | None


def main() -> None:
    """Measure, print, and write the JSON file and the page, both after each part."""
    options = _options()
    with clear_errors():
        shown = _measure(options)
    sys.exit(any(section.missed for section in shown))


def _measure(options: Options) -> list[Section]:
    console = make_console()
    allow_descriptors(options.simulated_tasks * DESCRIPTORS_PER_TASK + SPARE_DESCRIPTORS)
    pgbouncer = find_pgbouncer(console.print)  # the first time it is built: not while something is measured
    machine = this_machine(str(find_postgres().version), ".".join(map(str, pgbouncer.version)))
    console.print(machine_line(machine))
    began, progress = time.monotonic(), progress_on(console)
    shown: list[Section] = []
    with TempFolder("bench") as folder:
        for part in options.parts:
            shown.append(_section(part, options, pgbouncer, folder, machine_line(machine), progress))
            lines = [line for section in shown for line in section.lines]
            seconds = time.monotonic() - began
            write_results(options.output, line_results(machine, options, lines, seconds, shown))
            write_page(options.page, shown, "make bench-fleet")
    show(console, lines)
    console.print(_method(options, seconds))
    return shown


def _section(
    part: str, options: Options, pgbouncer: PgbouncerProgram, folder: Path, machine: str, progress: Progress
) -> Section:
    if part == "reaction":
        return sections.reaction_section(reaction.measure(pgbouncer, options.repetitions, progress), machine)
    if part == "skew":
        blocks = skew.measure(pgbouncer, options.repetitions, options.block_seconds, folder, progress)
        return sections.skew_section(blocks, machine)
    if part == "cost":
        costs = coordination.measure(pgbouncer, options.tasks, options.cost_seconds, folder, progress)
        return sections.cost_section(costs, machine)
    progress(f"simulated: {options.simulated_tasks} tasks")
    return sections.simulated_section(simulated.measure(options.simulated_tasks, options.cost_seconds), machine)


def _method(options: Options, seconds: float) -> str:
    return (
        f"Medians; a goal is met when the median meets it. Reaction: {options.repetitions} bursts of each kind, on "
        f"each task in turn. Skew: {options.repetitions} alternating blocks of {options.block_seconds} s by pgbench, "
        f"{skew.CLIENTS} clients, a budget of {skew.BUDGET}, each transaction holds its connection for {skew.HOLD_MS} "
        f"ms; the first {skew.LEAD_IN_SECONDS} s of a block are left out. Cost: {options.cost_seconds:g} s of each, "
        "counted by pg_stat_statements and by the processes' CPU. Clients, tasks and database share this machine. Load "
        f"average at the end {os.getloadavg()[0]:.1f}; measured in {seconds:.0f} s."
    )


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times (default: all)")
    parser.add_argument("--repetitions", type=at_least_one, default=7, help="bursts and blocks (default 7)")
    parser.add_argument("--block-seconds", type=at_least_one, default=15, help="skew: each block (default 15)")
    parser.add_argument("--cost-seconds", type=float, default=10.0, help="cost: each phase (default 10)")
    parser.add_argument("--tasks", type=at_least_one, nargs="+", default=[2, 10], help="cost: fleets (default 2 10)")
    parser.add_argument("--simulated-tasks", type=at_least_one, default=500, help="(default 500)")
    add_outputs(parser)
    given = parser.parse_args()
    if given.block_seconds <= skew.LEAD_IN_SECONDS:
        parser.error(f"--block-seconds must be above {skew.LEAD_IN_SECONDS}, got {given.block_seconds}")
    return Options(
        parts=tuple(given.only or PARTS),
        repetitions=given.repetitions,
        block_seconds=given.block_seconds,
        cost_seconds=given.cost_seconds,
        tasks=tuple(given.tasks),
        simulated_tasks=given.simulated_tasks,
        output=given.output,
        page=given.page,
    )


if __name__ == "__main__":
    main()
