"""The time line of a run as one plotly figure: five rows over the same seconds, faults as bands through all of them.

Owns what is drawn and with which colours; ink, grid and background are the page's style sheet's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from emberpool_local.lab import curves
from emberpool_local.lab.curves import Layers
from emberpool_local.lab.results import Bucket, LabResult
from emberpool_local.report.fragment import NEUTRAL, fragment

SUCCEEDED, FAILED, UNKNOWN, SLOWEST = "#12a17c", "#e5484d", "#d98a0b", "#5b8def"
TASK_COLOURS = ("#5b8def", "#12a17c", "#d98a0b", "#8256a8", "#3a9db5", "#b8456f", "#7d8a2e", "#5f6b7a")
BAND = "rgba(128,136,148,.30)"  # while the fault lasts
AFTERWARDS = "rgba(128,136,148,.13)"  # while it may still fail invocations
LEAST_BAR_SHARE = 0.003  # of the width: a kill lasts a millisecond and is seen nevertheless
MOST_POINTS = 1500
ROW_HEIGHTS = (0.24, 0.13, 0.19, 0.26, 0.18)
ROW_TITLES = (
    "invocations that succeeded, per second",
    (
        f'invocations that did not: <span style="color:{FAILED}">■ failed</span>, '
        f'<span style="color:{UNKNOWN}">■ reported as unknown</span>'
    ),
    "slowest invocation, ms",
    "server connections in the database",
    "slots held",
)
CONNECTIONS_ROW, SLOTS_ROW = 4, 5
HEIGHT = 900
TITLE_PIXELS = 20  # of the first row's title, below the faults' numbers
LANE_PIXELS = 16
LATENCY_TICKS_MS = [10**power for power in range(6)]


def timeline_figure(result: LabResult) -> str:
    """Draw the time line as an HTML fragment."""
    figure = make_subplots(rows=5, cols=1, shared_xaxes=True, vertical_spacing=0.045, row_heights=list(ROW_HEIGHTS))
    buckets = curves.merged(result.buckets, MOST_POINTS)
    begin, end = curves.span(result)
    _add_succeeded(figure, buckets)
    _add_failures(figure, buckets, (end - begin) * LEAST_BAR_SHARE)
    _add_latency(figure, buckets)
    _add_layers(figure, curves.connection_layers(result, MOST_POINTS), CONNECTIONS_ROW)
    _add_limit(figure, result.budget, f"budget: {result.budget}", CONNECTIONS_ROW)
    _add_layers(figure, curves.slot_layers(result, MOST_POINTS), SLOTS_ROW)
    _add_limit(figure, result.slots, f"all slots: {result.slots}", SLOTS_ROW)
    _add_titles(figure)
    lanes = _add_bands(figure, result)
    figure.update_layout(barmode="stack", showlegend=False)
    figure.update_xaxes(range=[begin, end])
    figure.update_xaxes(title="seconds since the first invocation", row=SLOTS_ROW, col=1)
    top = TITLE_PIXELS + LANE_PIXELS * lanes
    return fragment(figure, "timeline", HEIGHT + top, margin_top=top + 8)


def task_colours(tasks: Iterable[str]) -> dict[str, str]:
    """Return a colour for each task; after so many of them they come again."""
    return {task: TASK_COLOURS[number % len(TASK_COLOURS)] for number, task in enumerate(tasks)}


def _add_succeeded(figure: go.Figure, buckets: Sequence[Bucket]) -> None:
    seconds = curves.bucket_seconds(buckets)
    figure.add_scatter(
        x=[bucket.at for bucket in buckets],
        y=[round(bucket.succeeded / seconds, 1) for bucket in buckets],
        mode="lines",
        line={"color": SUCCEEDED, "width": 1.2, "shape": "hv"},
        fill="tozeroy",
        hovertemplate="%{y:,.0f} a second at %{x:.1f} s<extra></extra>",
        row=1,
        col=1,
    )
    figure.update_yaxes(rangemode="tozero", row=1, col=1)


def _add_failures(figure: go.Figure, buckets: Sequence[Bucket], least_width: float) -> None:
    """Draw each failure wide enough to be seen: there may be one of ten thousand."""
    width = max(curves.bucket_seconds(buckets), least_width)
    for name, colour in (("failed", FAILED), ("unknown", UNKNOWN)):
        shown = [(bucket.at, getattr(bucket, name)) for bucket in buckets if getattr(bucket, name)]
        figure.add_bar(
            x=[at for at, _ in shown],
            y=[count for _, count in shown],
            width=width,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{y} " + name + " at %{x:.1f} s<extra></extra>",
            row=2,
            col=1,
        )
    # A dot on each: beside a hundred, one is no bar that is seen.
    struck = [bucket for bucket in buckets if bucket.failed or bucket.unknown]
    figure.add_scatter(
        x=[bucket.at for bucket in struck],
        y=[bucket.failed + bucket.unknown for bucket in struck],
        mode="markers",
        marker={"size": 6, "color": [FAILED if bucket.failed else UNKNOWN for bucket in struck]},
        hoverinfo="skip",
        row=2,
        col=1,
    )
    most = max((bucket.failed + bucket.unknown for bucket in buckets), default=0)
    figure.update_yaxes(range=[0, max(most, 2) * 1.1], nticks=4, tickformat="d", row=2, col=1)


def _add_latency(figure: go.Figure, buckets: Sequence[Bucket]) -> None:
    figure.add_scatter(
        x=[bucket.at for bucket in buckets],
        y=[bucket.slowest_ms or None for bucket in buckets],
        mode="lines",
        line={"color": SLOWEST, "width": 1.4},
        hovertemplate="%{y:,.0f} ms at %{x:.1f} s<extra></extra>",
        row=3,
        col=1,
    )
    figure.update_yaxes(type="log", tickvals=LATENCY_TICKS_MS, tickformat=",d", row=3, col=1)


def _add_layers(figure: go.Figure, layers: Layers, row: int) -> None:
    for task, colour in task_colours(layers.values).items():
        figure.add_scatter(
            x=layers.at,
            y=layers.values[task],
            mode="lines",
            line={"color": colour, "width": 0, "shape": "hv"},
            stackgroup=f"row {row}",
            fillcolor=colour,
            hovertemplate=f"{escape(task)}: %{{y}} at %{{x:.2f}} s<extra></extra>",
            row=row,
            col=1,
        )


def _add_limit(figure: go.Figure, limit: int, text: str, row: int) -> None:
    figure.add_hline(
        y=limit,
        line={"color": NEUTRAL, "width": 1.5, "dash": "dash"},
        annotation={"text": text, "yshift": -1, "font": {"size": 12}},
        annotation_position="top right",
        row=row,
        col=1,
    )
    figure.update_yaxes(rangemode="tozero", nticks=5, row=row, col=1)


def _add_titles(figure: go.Figure) -> None:
    for number, title in enumerate(ROW_TITLES, 1):
        figure.add_annotation(
            text=title,
            x=0,
            xref="paper",
            xanchor="left",
            y=1,
            yref=f"y{number if number > 1 else ''} domain",
            yanchor="bottom",
            yshift=2,
            showarrow=False,
            font={"size": 13},
        )


def _add_bands(figure: go.Figure, result: LabResult) -> int:
    """Draw each fault through all rows and its number on top; return how many lanes the numbers take."""
    begin, end = curves.span(result)
    lanes = curves.lanes(result.faults, begin, end - begin)
    least = (end - begin) * LEAST_BAR_SHARE
    for number, (fault, lane) in enumerate(zip(result.faults, lanes, strict=True), 1):
        bands = [(fault.begun, max(fault.ended, fault.begun + least), BAND)]
        if curves.may_fail_until(fault) > fault.ended:
            bands.append((fault.ended, curves.may_fail_until(fault), AFTERWARDS))
        for left, right, colour in bands:
            figure.add_shape(
                type="rect",
                x0=left,
                x1=right,
                xref="x",
                y0=0,
                y1=1,
                yref="paper",
                fillcolor=colour,
                line={"width": 0},
                layer="below",
            )
        figure.add_annotation(
            text=f"<b>{number}</b>",
            hovertext=escape(f"{fault.title}: {fault.subject}"),
            x=curves.middle(fault),
            xref="x",
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=TITLE_PIXELS + LANE_PIXELS * lane,
            showarrow=False,
            font={"size": 12},
        )
    return max(lanes, default=-1) + 1
