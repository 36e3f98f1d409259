"""What a benchmark says: one section of the page, and the JSON that `python -m benchmarks` puts pages together from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series


@dataclass(frozen=True)
class Section:
    """One comparison: `claim` says in a sentence (or one a line) what is compared and wanted, `method` how."""

    title: str
    claim: str
    lines: Sequence[Line]
    plots: Sequence[Plot]
    method: str
    machine: str  # see command.machine_line; empty where nothing was measured

    @property
    def missed(self) -> list[Line]:
        """The lines whose goal is not met."""
        return [line for line in self.lines if line.is_met is False]


def sections_json(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return the sections as JSON's own types."""
    return [asdict(section) for section in sections]


def sections_from(document: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Return what sections_json wrote. Raises KeyError or TypeError for something else."""
    return [
        Section(
            **{
                **record,
                "lines": [Line(**line) for line in record["lines"]],
                "plots": [_plot(plot) for plot in record["plots"]],
            }
        )
        for record in document
    ]


def _plot(record: Mapping[str, Any]) -> Plot:
    return Plot(**{**record, "series": [Series(**series) for series in record["series"]]})
