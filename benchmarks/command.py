"""What all benchmark commands have in common: the console, the machine's line, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lines import Line, as_json
from rich.console import Console

from emberpool_local.burst.results import Machine

PLAIN_WIDTH = 140  # of a pipe or a file


def make_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def machine_line(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}; {versions}"


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the JSON file, if one was asked for."""
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")


def line_results(machine: Machine, options: Any, lines: Sequence[Line], seconds: float) -> dict[str, Any]:
    """Return the results of a benchmark whose outcome is one table; `options` is a dataclass."""
    return {
        "machine": asdict(machine),
        "options": asdict(options) | {"output": None},
        "load_average": os.getloadavg(),
        "lines": as_json(lines),
        "seconds": round(seconds, 1),
    }


def at_least_one(text: str) -> int:
    """Read a command line's count."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
