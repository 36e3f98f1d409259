"""`python -m benchmarks.whole_path` (make bench-path): invocations over a network delay, by three ways to connect.

Real execution environments, TLS and SCRAM on every hop; naive, warm only and emberpool take turns at each delay.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.command import (
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
from benchmarks.lines import show
from benchmarks.whole_path import blocks
from benchmarks.whole_path.rig import running_path
from benchmarks.whole_path.sections import lines, path_section

from emberpool_local.burst.machine import this_machine
from emberpool_local.errors import PostgresUnavailable
from emberpool_local.lab.network import NetworkKind
from emberpool_local.pgbouncer.program import find_pgbouncer
from emberpool_local.postgres.program import find_postgres

MOST_DELAY_MS = 1000.0


@dataclass(frozen=True)
class Options:
    """The command line."""

    environments: int
    delays_ms: Sequence[float]
    repetitions: int
    block_seconds: float
    network: NetworkKind | None
    output: Path | None
    page: Path | None


def main() -> None:
    """Measure, print, and write the JSON file and the page."""
    with clear_errors():
        _run(_options())


def _run(options: Options) -> None:
    console = make_console()
    began, progress = time.monotonic(), progress_on(console)
    pgbouncer = find_pgbouncer(console.print)  # the first time it is built: not while something is measured
    postgres = find_postgres()
    if not postgres.has_tls:
        raise PostgresUnavailable(
            f"{postgres.origin} has no TLS, which all ways use", "install the system's PostgreSQL"
        )
    machine = this_machine(str(postgres.version), ".".join(map(str, pgbouncer.version)))
    console.print(machine_line(machine))
    with running_path(postgres, pgbouncer, options.environments, options.network) as path:
        found = asyncio.run(
            blocks.measure(
                path, options.environments, options.delays_ms, options.repetitions, options.block_seconds, progress
            )
        )
        network = path.network.kind
    section = path_section(found, options.environments, options.block_seconds, network, machine_line(machine))
    shown = lines(found)
    show(console, shown)
    failures = {
        f"{way} at {delay:g} ms": dict(Counter(cause for block in measured for cause in block.failures).most_common(3))
        for delay, one in found.items()
        for way, measured in one.blocks.items()
    }
    for where, causes in failures.items():
        if causes:
            console.print(f"{where} failed: {causes}")
    seconds = time.monotonic() - began
    console.print(f"{section.method} Measured in {seconds:.0f} s.")
    results = line_results(machine, options, shown, seconds, [section])
    measured = {str(delay): asdict(one) for delay, one in found.items()}
    write_results(options.output, results | {"found": measured})
    write_page(options.page, [section], "make bench-path")
    sys.exit(bool(section.missed))


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_path", description=__doc__)
    parser.add_argument("--environments", type=at_least_one, default=10, help="of each way (default 10)")
    parser.add_argument(
        "--delay-ms", type=float, nargs="+", default=[0.0, 1.0, 5.0], help="of a round trip (default 0 1 5)"
    )
    parser.add_argument("--repetitions", type=at_least_one, default=5, help="blocks of each (default 5)")
    parser.add_argument("--block-seconds", type=float, default=2.0, help="each block (default 2)")
    parser.add_argument("--network", choices=("namespaces", "loopback"), help="(default: what this machine can do)")
    add_outputs(parser)
    given = parser.parse_args()
    if not given.block_seconds > 0:
        parser.error(f"--block-seconds must be above 0, got {given.block_seconds:g}")
    for delay in given.delay_ms:
        if not 0 <= delay <= MOST_DELAY_MS:
            parser.error(f"--delay-ms must be from 0 to {MOST_DELAY_MS:g}, got {delay:g}")
    return Options(
        environments=given.environments,
        delays_ms=tuple(dict.fromkeys(given.delay_ms)),
        repetitions=given.repetitions,
        block_seconds=given.block_seconds,
        network=given.network,
        output=given.output,
        page=given.page,
    )


if __name__ == "__main__":
    main()
