"""The benchmarks' page: one HTML file that needs nothing but itself, a section for each comparison.

What is missed stands on top and in each section's table; the page says nothing that is not in the sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.lines import Line
from benchmarks.plots import Plot, draw
from benchmarks.section import Section
from benchmarks.series import Spread
from markupsafe import Markup

from emberpool_local.report.document import document, shown_moment, write_document

TEMPLATES = Path(__file__).with_name("templates")
COMMAND = "make bench"


def write_bench_page(
    sections: Sequence[Section], path: Path, *, command: str = COMMAND, measured_at: str | None = None
) -> None:
    """Write the page; `measured_at` is an ISO 8601 time (default: now). Raises PageNotWritable."""
    write_document(bench_page(sections, command=command, measured_at=measured_at), path)


def bench_page(sections: Sequence[Section], *, command: str = COMMAND, measured_at: str | None = None) -> str:
    """Return the page as HTML."""
    machines = list(dict.fromkeys(section.machine for section in sections if section.machine))
    goals = [line for section in sections for line in section.lines if line.is_met is not None]
    met = [line for line in goals if line.is_met]
    return document(
        "bench.html.j2",
        folder=TEMPLATES,
        page_title="emberpool: the benchmarks",
        headline=f"{len(met)} of {len(goals)} goals are met." if goals else "What was measured",
        is_missed=len(met) < len(goals),
        missed=[(section.title, _shown(line)) for section in sections for line in section.missed],
        machines=machines,
        sections=[_section(number, section, len(machines) > 1) for number, section in enumerate(sections, 1)],
        command=command,
        measured_at=shown_moment(measured_at or datetime.now(UTC).isoformat(timespec="seconds")),
    )


def _section(number: int, section: Section, names_machine: bool) -> dict[str, Any]:
    return {
        "id": f"section-{number}",
        "title": section.title,
        "claim": section.claim,
        "goals": [_shown(line) for line in section.lines if line.is_met is not None],
        "others": [_shown(line) for line in section.lines if line.is_met is None],
        "plots": [_plot(f"{number}-{at}", plot) for at, plot in enumerate(section.plots, 1)],
        "method": section.method,
        "machine": section.machine if names_machine else "",
    }


def _plot(name: str, plot: Plot) -> dict[str, Any]:
    # The figure is our own HTML and JavaScript; inside it plotly's JSON escapes every text.
    return {"title": plot.title, "note": plot.note, "figure": Markup(draw(plot, name))}


def _shown(line: Line) -> dict[str, Any]:
    spread = Spread.of(line.values)
    return {
        "what": line.what,
        "unit": line.unit,
        "goal": line.goal,
        "median": f"{spread.median:,.{line.digits}f}",
        "spread": f"{spread.least:,.{line.digits}f} to {spread.greatest:,.{line.digits}f}"
        if len(line.values) > 1
        else "",
        "is_met": line.is_met,
    }
