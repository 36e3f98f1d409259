"""The goals beside what was measured: the one table of a benchmark, and the JSON of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.series import Spread
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Line:
    """One line of the table; the goal is met when the median is. Without a goal it is for information."""

    what: str
    unit: str
    values: Sequence[float]
    digits: int
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def is_met(self) -> bool | None:
        median = Spread.of(self.values).median
        if self.at_least is not None:
            return median >= self.at_least
        return None if self.at_most is None else median <= self.at_most


def show(console: Console, lines: Sequence[Line]) -> None:
    """Print the one table."""
    table = Table("", "goal", "measured", "least to greatest", "unit", "met")
    for line in lines:
        spread = Spread.of(line.values)
        table.add_row(
            line.what,
            line.goal,
            f"{spread.median:.{line.digits}f}",
            f"{spread.least:.{line.digits}f} to {spread.greatest:.{line.digits}f}",
            line.unit,
            {True: "yes", False: "NO", None: ""}[line.is_met],
        )
    console.print(table)


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines with every repetition."""
    return [asdict(line) | {"median": Spread.of(line.values).median, "is_met": line.is_met} for line in lines]
