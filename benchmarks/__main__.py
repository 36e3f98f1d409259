"""`python -m benchmarks` (make bench): all benchmarks one after the other, their results in one page and one JSON file.

Both files are written after each part: who interrupts a run keeps what was measured. Exit code 1 when a goal is missed
or a part failed; of a short run only the latter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.command import INTERRUPTED, make_console, write_page, write_results
from benchmarks.parts import PARTS
from benchmarks.section import Section, sections_from
from rich.console import Console

from emberpool_local.host.temp_folder import TempFolder

PAGE, OUTPUT = Path("emberpool-benchmarks.html"), Path("emberpool-benchmarks.json")
MISSED = (0, 1)  # a part's exit codes: measured, and measured with a goal missed


@dataclass(frozen=True)
class Options:
    """The command line."""

    parts: Sequence[str]
    is_quick: bool
    redraw: Path | None
    output: Path
    page: Path


def main() -> None:
    """Run the parts, or draw the page of an earlier run."""
    options = _options()
    console = make_console()
    if options.redraw:
        results = _read(options.redraw)
    else:
        results = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "parts": {}, "failed": []}
        try:
            _run(options, results, console)
        except KeyboardInterrupt:
            console.print("interrupted: the page has what was measured until then")
            sys.exit(INTERRUPTED)
    sections = _sections(results)
    write_page(options.page, sections, _command(options), results["measured_at"])
    sys.exit(say_outcome(console, sections, results["failed"], options.is_quick))


def _run(options: Options, results: dict[str, Any], console: Console) -> None:
    for name in options.parts:
        console.rule(f"{name}: python -m {PARTS[name].module}")
        exit_code, measured = _measured(name, options.is_quick)
        if exit_code not in MISSED or measured is None:
            console.print(f"{name} failed: its message stands above; the others go on")
            results["failed"].append(name)
        if measured is not None:
            results["parts"][name] = measured
        write_results(options.output, results)
        write_page(options.page, _sections(results), _command(options), results["measured_at"])


def _measured(name: str, is_quick: bool) -> tuple[int, Mapping[str, Any] | None]:
    """Run one part; return its exit code and its JSON, None when it wrote none. A part may fail at its end only."""
    part = PARTS[name]
    with TempFolder("benchmarks") as folder:
        output = folder / "results.json"
        arguments = part.quick if is_quick else ()
        done = subprocess.run([sys.executable, "-m", part.module, "--output", str(output), *arguments], check=False)
        found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else None
        return done.returncode, found


def _sections(results: Mapping[str, Any]) -> list[Section]:
    return [section for part in results["parts"].values() for section in sections_from(part["sections"])]


def _read(path: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _sections(results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path} holds no results of `make bench`: {error}\n next: name the JSON file that it wrote")
    return results


def say_outcome(console: Console, sections: Sequence[Section], failed: Sequence[str], is_quick: bool) -> int:
    """Say which goals were missed and which parts failed, and return the exit code: a short run meets no goals."""
    missed = [(section, line) for section in sections for line in section.missed]
    for section, line in missed:
        console.print(f"missed: {section.title}: {line.what}: the goal is {line.goal} {line.unit}")
    if missed and is_quick:
        console.print("so short a run says nothing of goals: it shows that the parts work")
    for name in failed:
        console.print(f"failed: {name}")
    if not missed and not failed:
        console.print("every goal is met")
    return 1 if failed or (missed and not is_quick) else 0


def _command(options: Options) -> str:
    chosen = [f"--only {name}" for name in options.parts] if len(options.parts) < len(PARTS) else []
    arguments = " ".join([*chosen, *(["--quick"] if options.is_quick else [])])
    return f'make bench ARGS="{arguments}"' if arguments else "make bench"


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times (default: all)")
    parser.add_argument("--quick", action="store_true", help="short runs: they show that it works, not how fast")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="measure nothing: draw this JSON file's page")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help=f"(JSON; default {OUTPUT})")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help=f"(HTML; default {PAGE})")
    given = parser.parse_args()
    return Options(tuple(given.only or PARTS), given.quick, given.redraw, given.output, given.page)


if __name__ == "__main__":
    main()
