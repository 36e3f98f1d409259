"""The plots of a benchmark, as plain data, and how each is drawn for the page.

A measurement hands over `Plot`s and knows nothing of plotly; the page draws them in one manner and with one colour for
each way, so that a colour means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go  # type: ignore[import-untyped]
from benchmarks.series import Spread

from emberpool_local.report.fragment import NEUTRAL, fragment

# By the series' first word, as "direct, TLS" and "direct" are the same way; the others take OTHER_COLOURS in turn.
COLOURS = {
    "emberpool": "#12a17c",
    "emberpool.sqlalchemy.engine": "#12a17c",
    "layer": "#12a17c",
    "bare": "#5b8def",
    "PgBouncer": "#5b8def",
    "direct": "#e5484d",
    "naive": "#e5484d",
    "pgpool-II": "#b8456f",
    "warm": "#d98a0b",
    "RDS": "#8256a8",
}
OTHER_COLOURS = ("#d98a0b", "#8256a8", "#3a9db5", "#b8456f", "#7d8a2e", "#5f6b7a")
OTHERS = "#8b95a5"
HEIGHT = 360
LONGEST_UPRIGHT = 14  # characters of a name below an upright bar
LONGEST_LINE = 32
LINE_PIXELS, BAR_PIXELS = 16, 18


@dataclass(frozen=True)
class Series:
    """One line, or the bars of one colour; `low` and `high` are the least and the greatest of each point."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, values in (("y", self.y), ("low", self.low), ("high", self.high)):
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"series {self.name}: {len(values)} values in {name} for {len(self.x)} in x")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name}: low and high belong together")


@dataclass(frozen=True)
class Plot:
    """One plot; `note` is the sentence below its title: what is compared and which way is better."""

    title: str
    kind: Literal["lines", "bars"]
    x_title: str
    y_title: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    note: str = ""


def bars(name: str, values: Mapping[str, Sequence[float]]) -> Series:
    """Return a series of the median of each name's repetitions, with the least and the greatest."""
    spreads = [Spread.of(one) for one in values.values()]
    return Series(
        name,
        list(values),
        [spread.median for spread in spreads],
        [spread.least for spread in spreads],
        [spread.greatest for spread in spreads],
    )


def draw(plot: Plot, name: str) -> str:
    """Return the plot as an HTML fragment; `name` is its own on the page."""
    figure = go.Figure()
    height = _add_bars(figure, plot) if plot.kind == "bars" else _add_lines(figure, plot)
    figure.update_layout(showlegend=len(plot.series) > 1)
    return fragment(figure, name, height)


def colours(names: Sequence[str]) -> list[str]:
    """Return one colour for each series: the way's own, and never the same twice while there are others."""
    chosen: list[str] = []
    for name in names:
        own = _way_colour(name)
        left = [colour for colour in (own, *OTHER_COLOURS, *COLOURS.values()) if colour and colour not in chosen]
        chosen.append(left[0] if left else NEUTRAL)
    return chosen


def _way_colour(name: str) -> str | None:
    words = re.findall(r"[\w.-]+", name)
    return COLOURS.get(words[0]) if words else None


def _add_lines(figure: go.Figure, plot: Plot) -> int:
    for series, colour in zip(plot.series, colours([series.name for series in plot.series]), strict=True):
        figure.add_scatter(
            x=series.x,
            y=series.y,
            name=series.name,
            error_y=_spread(series),
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"size": 7},
            hovertemplate="%{y:,.4~g} at %{x}",
        )
    figure.update_xaxes(title=plot.x_title)
    if plot.log_x:
        # A tick at each point and nowhere else: clients of 1, 10, 100 are read as such.
        ticks = sorted({x for series in plot.series for x in series.x if not isinstance(x, str)})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])
    figure.update_yaxes(title=plot.y_title, **_value_axis(plot))
    return HEIGHT


def _add_bars(figure: go.Figure, plot: Plot) -> int:
    """Draw bars, lying ones where the names are long; return the height in pixels."""
    labels = list(dict.fromkeys(str(x) for series in plot.series for x in series.x))
    is_lying = any(len(label) > LONGEST_UPRIGHT for label in labels)
    for series, colour in zip(plot.series, colours([series.name for series in plot.series]), strict=True):
        names = [wrapped(str(x)) for x in series.x]
        # A lone series compares its bars: ours stand out.
        colour_of = [_way_colour(str(x)) or OTHERS for x in series.x] if len(plot.series) == 1 else colour
        figure.add_bar(
            x=series.y if is_lying else names,
            y=names if is_lying else series.y,
            orientation="h" if is_lying else "v",
            name=series.name,
            marker={"color": colour_of},
            hovertemplate="%{x:,.4~g}" if is_lying else "%{y:,.4~g}",
            **{"error_x" if is_lying else "error_y": _spread(series)},
        )
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.08)
    if not is_lying:
        figure.update_xaxes(title=plot.x_title, type="category")
        figure.update_yaxes(title=plot.y_title, **_value_axis(plot))
        return HEIGHT
    figure.update_xaxes(title=plot.y_title, **_value_axis(plot))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    lines = max(wrapped(label).count("<br>") + 1 for label in labels)
    return 90 + (max(LINE_PIXELS * lines, BAR_PIXELS * len(plot.series)) + 12) * len(labels)


def _value_axis(plot: Plot) -> dict[str, Any]:
    if plot.log_y:
        return {"type": "log", "dtick": 1, "tickformat": ",~g"}
    return {"rangemode": "tozero", "tickformat": ",~g"}


def wrapped(text: str) -> str:
    """Break a long name over lines of at most LONGEST_LINE, where it has spaces."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > LONGEST_LINE:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def _spread(series: Series) -> Mapping[str, Any] | None:
    if series.low is None or series.high is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - y for high, y in zip(series.high, series.y, strict=True)],
        "arrayminus": [y - low for low, y in zip(series.low, series.y, strict=True)],
        "thickness": 1.2,
        "width": 3,
        "color": NEUTRAL,
    }
