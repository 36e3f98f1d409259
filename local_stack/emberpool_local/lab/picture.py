"""The run as a small SVG for a README: throughput, failures and connections against the budget, faults as bands.

It stands in light and in dark pages alike, needs no script and no font of its own, and holds no time or date beyond the
run's: the same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.lab import curves
from emberpool_local.lab.curves import Layers
from emberpool_local.lab.figure import task_colours
from emberpool_local.lab.page import TEMPLATES, headline, is_broken, sentence
from emberpool_local.lab.results import Bucket, LabResult
from emberpool_local.report.document import templates, write_document

WIDTH, LEFT, RIGHT = 1000, 62, 14
LANE_HEIGHT = 15
FIRST_NUMBER = 76  # below the headline and the subline
ROW_HEIGHTS = {"throughput": 120, "failures": 52, "connections": 150}
ROW_GAP = 34  # holds the next row's title
LIST_TOP = 72  # below the last row: the seconds and their title
LINE_HEIGHT = 20  # of the list of faults
COLUMNS = 2
POINTS = 440  # one for two pixels
LEAST_WIDTH = 2.5  # of a band and of a failure, in pixels


@dataclass(frozen=True)
class Scale:
    """Where a value stands: of `most`, in a row that begins `top` pixels down; and a moment of the run."""

    begin: float
    end: float
    top: float
    height: float
    most: float

    def x(self, seconds: float) -> float:
        """Return how many pixels from the left a moment stands."""
        return round(LEFT + (seconds - self.begin) / (self.end - self.begin) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return how many pixels from above a value stands."""
        return round(self.top + self.height * (1 - value / self.most), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the few heights that are named."""
        step = next(step for step in _steps() if self.most / step <= 3)  # noqa: PLR2004 (lines in a low row)
        return [(self.y(step * number), f"{step * number:,}") for number in range(int(self.most / step) + 1)]


def write_lab_picture(result: LabResult, path: Path) -> None:
    """Write the picture. Raises PageNotWritable."""
    write_document(lab_picture(result), path)


def lab_picture(result: LabResult) -> str:
    """Return the picture as SVG, below 100 kB for a run of any length."""
    begin, end = curves.span(result)
    lanes = curves.lanes(result.faults, begin, end - begin)
    buckets = curves.merged(result.buckets, POINTS)
    layers = curves.connection_layers(result, POINTS)
    top = FIRST_NUMBER + LANE_HEIGHT * (max(lanes, default=-1) + 1) + ROW_GAP - 12
    rows = _rows(begin, end, top, _most(result, buckets, layers))
    bottom = rows["connections"].top + rows["connections"].height
    lines = -(-len(result.faults) // COLUMNS)
    return (
        templates(TEMPLATES)
        .get_template("picture.svg.j2")
        .render(
            width=WIDTH,
            height=round(bottom + LIST_TOP + LINE_HEIGHT * lines),
            left=LEFT,
            right=WIDTH - RIGHT,
            top=rows["throughput"].top,
            bottom=bottom,
            headline=headline(result),
            holds=result.holds,
            subline=_subline(result),
            rows=rows,
            seconds=_seconds(rows["throughput"]),
            bands=_bands(result, rows["throughput"], lanes),
            throughput=_area(rows["throughput"], buckets),
            failures=_failures(rows["failures"], buckets),
            layers=_stack(rows["connections"], layers),
            budget=result.budget,
            faults=_list(result, bottom + LIST_TOP, lines),
        )
    )


def _most(result: LabResult, buckets: Sequence[Bucket], layers: Layers) -> dict[str, float]:
    seconds = curves.bucket_seconds(buckets)
    return {
        "throughput": max([1.0, *(bucket.succeeded / seconds for bucket in buckets)]) * 1.05,
        "failures": max([2, *(bucket.failed + bucket.unknown for bucket in buckets)]),
        "connections": max([result.budget, *layers.totals]) * 1.1,
    }


def _rows(begin: float, end: float, top: float, most: dict[str, float]) -> dict[str, Scale]:
    rows = {}
    for name, height in ROW_HEIGHTS.items():
        rows[name] = Scale(begin, end, top, height, most[name])
        top += height + ROW_GAP
    return rows


def _subline(result: LabResult) -> str:
    return (
        f"{result.environments} execution environments, {result.tasks} proxy tasks, a budget of {result.budget} server "
        f"connections; {result.failed:,} failed, {result.unknown:,} unknown and reported as such; seed {result.seed}"
    )


def _area(scale: Scale, buckets: Sequence[Bucket]) -> str:
    seconds = curves.bucket_seconds(buckets)
    points = [(scale.x(bucket.at), scale.y(bucket.succeeded / seconds)) for bucket in buckets]
    if not points:
        return ""
    edge = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f"M{points[0][0]:g},{scale.y(0):g} L{edge} L{points[-1][0]:g},{scale.y(0):g} Z"


def _failures(scale: Scale, buckets: Sequence[Bucket]) -> list[dict[str, float | str]]:
    bars: list[dict[str, float | str]] = []
    for bucket in buckets:
        for kind, low, high in (
            ("failed", 0, bucket.failed),
            ("unknown", bucket.failed, bucket.failed + bucket.unknown),
        ):
            if high > low:
                x, y = scale.x(bucket.at), scale.y(high)
                height = max(round(scale.y(low) - y, 1), LEAST_WIDTH)  # beside a hundred, one is to be seen
                bars.append(
                    {"kind": kind, "x": x, "y": scale.y(low) - height, "height": height, "width": LEAST_WIDTH + 1}
                )
    return bars


def _stack(scale: Scale, layers: Layers) -> list[dict[str, str]]:
    """Return one area for each task, from the top one down: each covers the lower part of the one before."""
    shapes = []
    below = [0] * len(layers.at)
    for task, colour in task_colours(layers.values).items():
        below = [low + own for low, own in zip(below, layers.values[task], strict=True)]
        shapes.append({"task": task, "colour": colour, "path": _steps_path(scale, layers.at, below)})
    return shapes[::-1]


def _steps_path(scale: Scale, at: Sequence[float], values: Sequence[int]) -> str:
    """Return an area whose edge keeps each value until the next, as the counts do."""
    last: int | None = None
    parts = []
    for moment, value in zip(at, values, strict=True):
        if value != last:
            parts.append(f"H{scale.x(moment):g}V{scale.y(value):g}")
            last = value
    if not parts:
        return ""
    first, end = scale.x(at[0]), scale.x(at[-1])
    return f"M{first:g},{scale.y(0):g}{''.join(parts)}H{end:g}V{scale.y(0):g}Z"


def _bands(result: LabResult, scale: Scale, lanes: Sequence[int]) -> list[dict[str, float | int]]:
    highest = max(lanes, default=0)
    bands = []
    for number, (fault, lane) in enumerate(zip(result.faults, lanes, strict=True), 1):
        left, ended, until = scale.x(fault.begun), scale.x(fault.ended), scale.x(curves.may_fail_until(fault))
        bands.append(
            {
                "number": number,
                "x": left,
                "width": max(round(ended - left, 1), LEAST_WIDTH),
                "after": round(until - ended, 1),
                "ended": ended,
                "middle": scale.x(curves.middle(fault)),
                "y": FIRST_NUMBER + LANE_HEIGHT * (highest - lane),
            }
        )
    return bands


def _list(result: LabResult, top: float, lines: int) -> list[dict[str, object]]:
    width = (WIDTH - LEFT - RIGHT) / COLUMNS
    return [
        {
            "number": number + 1,
            "title": sentence(fault.title),
            "failed": fault.failed + fault.unknown,
            "is_broken": is_broken(fault),
            "x": round(LEFT + width * (number // lines)),
            "y": round(top + LINE_HEIGHT * (number % lines)),
        }
        for number, fault in enumerate(result.faults)
    ]


def _seconds(scale: Scale) -> list[tuple[float, str]]:
    step = next(step for step in _steps() if (scale.end - scale.begin) / step <= 10)  # noqa: PLR2004 (that fit)
    return [(scale.x(at), f"{at:g}") for at in range(0, int(scale.end) + 1, step)]


def _steps() -> list[int]:
    return [step * 10**power for power in range(9) for step in (1, 2, 5)]
