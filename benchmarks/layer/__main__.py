"""`python -m benchmarks.layer` (make bench-layer): the layer against what a user would write instead, in one run.

Warm path, cold start, import time: ratios with their spread over alternating repetitions, the goals beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import (
    Progress,
    add_outputs,
    at_least_one,
    clear_errors,
    machine_line,
    make_console,
    progress_on,
    write_page,
    write_results,
)
from benchmarks.layer import cold_start, import_time, sections, tables, warm_path
from benchmarks.layer.cores import Cores
from benchmarks.section import Section, sections_json
from rich.console import Console

from emberpool_local.burst.machine import this_machine
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import find_pgbouncer
from emberpool_local.postgres.program import find_postgres

PARTS = ("warm", "imports", "cold")


@dataclass(frozen=True)
class Options:
    """The command line."""

    parts: tuple[str, ...]
    repetitions: int
    cold_repetitions: int
    invocations: int
    delays_ms: tuple[float, ...]
    own_imports: tuple[str, ...]
    output: Path | None
    page: Path | None


def main() -> None:
    """Measure, print, and write the JSON file and the page."""
    options = _options()
    with clear_errors():
        _measure(options)


def _measure(options: Options) -> None:
    console = make_console()
    began, progress = time.monotonic(), progress_on(console)
    cores = Cores.chosen()
    pgbouncer = find_pgbouncer(console.print)  # the first time it is built: not while something is measured
    machine = this_machine(str(find_postgres().version), ".".join(map(str, pgbouncer.version)))
    console.print(machine_line(machine), cores.text(), sep="\n")
    results: dict[str, Any] = {"machine": asdict(machine), "cores": cores.text()}
    shown: list[Section] = []
    with TempFolder("bench") as folder:
        for part in options.parts:
            results[part], section = _measured(part, options, cores, folder, console, machine_line(machine), progress)
            shown.append(section)
    results["seconds"] = round(time.monotonic() - began, 1)
    console.print(f"\nmeasured in {results['seconds']:.0f} s")
    write_results(options.output, results | {"sections": sections_json(shown)})
    write_page(options.page, shown, "make bench-layer")


def _measured(
    part: str,
    options: Options,
    cores: Cores,
    folder: Path,
    console: Console,
    machine: str,
    progress: Progress,
) -> tuple[Mapping[str, Any], Section]:
    console.print()
    if part == "warm":
        found = {}
        for placed in dict.fromkeys((cores.together(), cores)):
            found[placed] = warm_path.measure(placed, options.repetitions, options.invocations, progress)
            tables.show_warm_path(console, found[placed], placed)
        results = {placed.text(): tables.warm_path_json(warm) for placed, warm in found.items()}
        return results, sections.warm_path_section(found, machine)
    if part == "imports":
        progress(f"imports: {options.repetitions} of each")
        imports = import_time.measure(cores, folder, options.repetitions)
        tables.show_imports(console, imports)
        return tables.imports_json(imports), sections.imports_section(imports, machine)
    cold = cold_start.measure(cores, folder, options.cold_repetitions, options.delays_ms, options.own_imports, progress)
    tables.show_cold_start(console, cold)
    return tables.cold_start_json(cold), sections.cold_start_section(cold, machine)


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times (default: all)")
    parser.add_argument("--repetitions", type=at_least_one, default=7, help="warm path and imports (default 7)")
    parser.add_argument("--cold-repetitions", type=at_least_one, default=5, help="cold starts (default 5)")
    parser.add_argument("--invocations", type=at_least_one, default=1000, help="warm path: per repetition and way")
    parser.add_argument(
        "--delay-ms", type=float, action="append", help="cold start: delay of a round trip (default: 0 and 2)"
    )
    add_outputs(parser)
    parser.add_argument("--json", type=Path, dest="output", help=argparse.SUPPRESS)  # its name until 0.1
    given = parser.parse_args()
    return Options(
        parts=tuple(given.only or PARTS),
        repetitions=given.repetitions,
        cold_repetitions=given.cold_repetitions,
        invocations=given.invocations,
        delays_ms=tuple(given.delay_ms or (0.0, 2.0)),
        own_imports=cold_start.OWN_IMPORTS,
        output=given.output,
        page=given.page,
    )


if __name__ == "__main__":
    main()
