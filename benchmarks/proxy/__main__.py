"""`python -m benchmarks.proxy` (make bench-proxy): our proxy against a bare PgBouncer with the same files, in one run.

Throughput, logins, memory, start, and what the agent costs: ratios with their spread, the goals beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import at_least_one, line_results, machine_line, make_console, write_results
from benchmarks.lines import Line, show
from benchmarks.proxy import storms, tables, throughput
from benchmarks.proxy.clients import allow_descriptors
from benchmarks.proxy.pair import Database, running_database

from emberpool_local.burst.machine import this_machine
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram, find_pgbouncer

PARTS = ("throughput", "storms")
SPARE_DESCRIPTORS = 200


@dataclass(frozen=True)
class Options:
    """The command line."""

    parts: tuple[str, ...]
    repetitions: int
    block_seconds: int
    storms: int
    clients: int
    hold_seconds: float
    output: Path | None


def main() -> None:
    """Measure, print, and write the JSON file."""
    options = _options()
    console = make_console()
    if allow_descriptors(options.clients + SPARE_DESCRIPTORS) < options.clients + SPARE_DESCRIPTORS:
        sys.exit(f"error: the limit of open files is below {options.clients} clients\n next: ulimit -Hn, or --clients")
    began = time.monotonic()
    pgbouncer = find_pgbouncer(console.print)  # the first time it is built: not while something is measured
    with running_database() as database, TempFolder("bench") as folder:
        machine = this_machine(str(database.postgres.program.version), ".".join(map(str, pgbouncer.version)))
        console.print(machine_line(machine))
        lines = _measured(options, database, pgbouncer, folder)
    seconds = time.monotonic() - began
    show(console, lines)
    console.print(_method(options, seconds))
    write_results(options.output, line_results(machine, options, lines, seconds))
    sys.exit(any(line.is_met is False for line in lines))


def _measured(options: Options, database: Database, pgbouncer: PgbouncerProgram, folder: Path) -> list[Line]:
    lines: list[Line] = []
    if "throughput" in options.parts:
        rates = throughput.measure(database, pgbouncer, folder, options.repetitions, options.block_seconds)
        lines += tables.throughput_lines(rates)
    if "storms" in options.parts:
        found = storms.measure(database, pgbouncer, options.storms, options.clients, options.hold_seconds)
        lines += tables.storm_lines(found, options.clients)
    return lines


def _method(options: Options, seconds: float) -> str:
    return (
        f"Medians; a goal is met when the median meets it. Throughput: {options.repetitions} alternating blocks of "
        f"{options.block_seconds} s by pgbench ({throughput.CLIENTS} clients, 20 server connections). Logins and "
        f"memory: {options.storms} alternating storms, each on processes started anew, from one process of clients on "
        "the same machine, which costs more CPU than what it measures; memory is resident, what processes share counts "
        f"for each. Load average at the end {os.getloadavg()[0]:.1f}; measured in {seconds:.0f} s. What else runs on "
        "the machine hits rates and the start more than CPU and memory."
    )


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times (default: all)")
    parser.add_argument("--repetitions", type=at_least_one, default=12, help="throughput: blocks (default 12)")
    parser.add_argument("--block-seconds", type=at_least_one, default=1, help="throughput: each block (default 1)")
    parser.add_argument("--storms", type=at_least_one, default=5, help="storms of logins (default 5)")
    parser.add_argument("--clients", type=at_least_one, default=5000, help="clients of a storm (default 5000)")
    parser.add_argument("--hold-seconds", type=float, default=10.0, help="how long the agent is watched (default 10)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all repetitions to this file (JSON)")
    given = parser.parse_args()
    if given.clients > storms.MOST_CLIENTS:
        parser.error(f"--clients must be at most {storms.MOST_CLIENTS}, got {given.clients}")
    return Options(
        parts=tuple(given.only or PARTS),
        repetitions=given.repetitions,
        block_seconds=given.block_seconds,
        storms=given.storms,
        clients=given.clients,
        hold_seconds=given.hold_seconds,
        output=given.output,
    )


if __name__ == "__main__":
    main()
