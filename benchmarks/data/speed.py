"""Blocks of one server, one statement and one number of connections, in alternation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.command import Progress
from benchmarks.data.servers import GRANIAN, NUMBERED, RAW, SIGNED, STARLETTE, UNSIGNED, Rig
from benchmarks.data.statements import STATEMENTS, Statement
from benchmarks.data.window import Load

NAMES = (SIGNED, NUMBERED, UNSIGNED, STARLETTE, GRANIAN, RAW)

WARM_SECONDS = 0.2


@dataclass(frozen=True)
class Cell:
    """What is compared with one another: the same statement on as many connections, by server and repetition."""

    statement: Statement
    connections: int
    loads: Mapping[str, list[Load]] = field(default_factory=lambda: {name: [] for name in NAMES})


def measure(
    rig: Rig, connections: Sequence[int], repetitions: int, block_seconds: float, progress: Progress
) -> list[Cell]:
    """Measure all cells. The first blocks, which open sessions and fill caches, are short and not kept."""
    cells = [Cell(statement, number) for statement in STATEMENTS for number in connections]
    progress(f"speed: warming {len(cells) * len(NAMES)} cells")
    for cell in cells:
        for name in NAMES:
            rig.measure(name, cell.statement, cell.connections, WARM_SECONDS)
    for repetition in range(1, repetitions + 1):
        progress(f"speed {repetition} of {repetitions}: {len(cells) * len(NAMES)} blocks of {block_seconds:g} s")
        for cell in cells:
            for name in random.sample(NAMES, len(NAMES)):
                cell.loads[name].append(rig.measure(name, cell.statement, cell.connections, block_seconds))
    return cells
