"""`python -m benchmarks.scale` (make bench-scale): the slots of fleets beyond this machine, in virtual time.

The simulation of `emberpool_local.simulation` for fleets of growing size: budget, convergence, fairness, and what the
coordination asks of the database.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.command import Progress, add_outputs, at_least_one, make_console, progress_on, write_page, write_results
from benchmarks.lines import as_json, show
from benchmarks.scale.sections import Found, lines, scale_section
from benchmarks.section import sections_json

from emberpool_local.simulation.scale import run_large

TASKS = (20, 100, 500)
MOST_TASKS = 2000
ENVIRONMENTS_OF_A_TASK = 200  # 500 tasks have 100,000


@dataclass(frozen=True)
class Options:
    """The command line."""

    tasks: Sequence[int]
    seeds: int
    virtual_seconds: float
    output: Path | None
    page: Path | None


def main() -> None:
    """Simulate, print, and write the JSON file and the page."""
    options = _options()
    console = make_console()
    began = time.monotonic()
    found = _simulated(options, progress_on(console))
    shown = lines(found, options.virtual_seconds)
    section = scale_section(found, options.virtual_seconds)
    show(console, shown)
    for result in (one for results in found.values() for one in results if one.broken):
        console.print(f"{result.tasks} tasks, seed {result.seed}: {result.broken}")
    seconds = time.monotonic() - began
    console.print(f"{section.method} Simulated in {seconds:.0f} s.")
    results = {
        "found": [asdict(one) for results in found.values() for one in results],
        "lines": as_json(shown),
        "sections": sections_json([section]),
        "seconds": round(seconds, 1),
    }
    write_results(options.output, results)
    write_page(options.page, [section], "make bench-scale")
    sys.exit(bool(section.missed))


def _simulated(options: Options, progress: Progress) -> Found:
    # The largest first: it takes longest, and the others fit beside it.
    sizes = sorted(options.tasks, reverse=True)
    with ProcessPoolExecutor() as processes:
        running = {
            tasks: [
                processes.submit(run_large, tasks, tasks * ENVIRONMENTS_OF_A_TASK, options.virtual_seconds, seed)
                for seed in range(1, options.seeds + 1)
            ]
            for tasks in sizes
        }
        for done in as_completed([one for runs in running.values() for one in runs]):
            result = done.result()
            progress(f"{result.tasks} tasks, seed {result.seed}: {options.virtual_seconds:g} virtual seconds")
        return {tasks: [one.result() for one in running[tasks]] for tasks in sorted(sizes)}


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--tasks", type=at_least_one, nargs="+", default=TASKS, help="fleets (default 20 100 500)")
    parser.add_argument("--seeds", type=at_least_one, default=2, help="runs of each (default 2)")
    parser.add_argument("--virtual-seconds", type=float, default=60.0, help="of each run (default 60)")
    add_outputs(parser)
    given = parser.parse_args()
    for tasks in given.tasks:
        if not 2 <= tasks <= MOST_TASKS:
            parser.error(f"--tasks must be from 2 to {MOST_TASKS}, got {tasks}")
    if not given.virtual_seconds > 0:
        parser.error(f"--virtual-seconds must be above 0, got {given.virtual_seconds:g}")
    return Options(tuple(dict.fromkeys(given.tasks)), given.seeds, given.virtual_seconds, given.output, given.page)


if __name__ == "__main__":
    main()
