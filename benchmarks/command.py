"""What all benchmark commands have in common: the console, the machine's line, the JSON file and the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lines import Line, as_json
from benchmarks.page import write_bench_page
from benchmarks.section import Section, sections_json
from rich.console import Console

from emberpool_local.burst.results import Machine
from emberpool_local.errors import LocalStackError

Progress = Callable[[str], None]  # says what is measured now

PLAIN_WIDTH = 140  # of a pipe or a file
FAILED = 2  # not measured; 1 is a goal that was missed
INTERRUPTED = 130  # as shells say it of Ctrl-C


def make_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def progress_on(console: Console) -> Progress:
    """Return what says a line of progress, with the seconds since now before it."""
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.0f} s  {text}")

    return say


def machine_line(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}; {versions}"


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the JSON file, if one was asked for."""
    if path:
        try:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            sys.exit(f"error: {path} cannot be written: {error.strerror}\n next: name another file")


def line_results(
    machine: Machine, options: Any, lines: Sequence[Line], seconds: float, sections: Sequence[Section] = ()
) -> dict[str, Any]:
    """Return the results of a benchmark whose outcome is one table; `options` is a dataclass."""
    return {
        "machine": asdict(machine),
        "options": {name: value for name, value in asdict(options).items() if not isinstance(value, Path)},
        "load_average": os.getloadavg(),
        "lines": as_json(lines),
        "sections": sections_json(sections),
        "seconds": round(seconds, 1),
    }


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks have: --output and --page."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all repetitions to this file (JSON)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also draw the results as a page (HTML)")


def write_page(path: Path | None, sections: Sequence[Section], command: str, measured_at: str | None = None) -> None:
    """Write the page, if one was asked for; `command` is what was typed to get it."""
    if path:
        try:
            write_bench_page(sections, path, command=command, measured_at=measured_at)
        except LocalStackError as error:
            sys.exit(f"error: {error.problem}\n next: {error.next_step}")
        print(f"The page is in {path}")


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with one clear message and exit code FAILED when something cannot be measured, and quietly by Ctrl-C."""
    try:
        yield
    except LocalStackError as error:
        print(f"error: {error.problem}\n next: {error.next_step}", file=sys.stderr)
        sys.exit(FAILED)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def at_least_one(text: str) -> int:
    """Read a command line's count."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
