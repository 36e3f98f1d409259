"""The figures of the page, as HTML fragments that need plotly.js once on the page.

Owns what is drawn and with which colours.
"""

from __future__ import annotations

import plotly.graph_objects as go  # type: ignore[import-untyped]

from emberpool_local.burst.results import DemoResult, WayResult
from emberpool_local.report.fragment import NEUTRAL, fragment
from emberpool_local.report.wording import causes

WAY_COLOURS = {"naive": "#e5484d", "warm": "#d98a0b", "emberpool": "#12a17c"}
OTHER_WAY_COLOUR = "#5b8def"
FAILURE_COLOURS = ("#e5484d", "#b8456f", "#8256a8", "#5f6b7a")
CURVE_POINTS = 400
LATENCY_TICKS_MS = [step * 10**power for power in range(6) for step in (1, 2, 5)]
# Below this ratio of the slowest to the fastest, a logarithmic axis has hardly a tick.
LINEAR_UP_TO = 6


def connections_figure(result: DemoResult) -> str:
    """Draw the server connections over time, one line for each way, against the database's limit."""
    figure = go.Figure()
    for way in result.ways:
        samples = _shown_samples(way)
        figure.add_scatter(
            x=[seconds for seconds, _ in samples],
            y=[count for _, count in samples],
            name=way.title,
            mode="lines",
            line={"color": way_colour(way), "width": 2.5, "shape": "hv"},
            hovertemplate="%{y} connections at %{x:.2f} s",
        )
    figure.add_hline(
        y=result.max_connections,
        line={"color": NEUTRAL, "width": 1.5, "dash": "dash"},
        annotation={"text": f"max_connections = {result.max_connections}", "yshift": 9},
        annotation_position="top right",
    )
    figure.update_xaxes(title="seconds since the first invocation")
    figure.update_yaxes(title="server connections", range=[0, result.max_connections * 1.18])
    return fragment(figure, "connections", height=360)


def latency_figure(result: DemoResult) -> str:
    """Draw the share of all invocations that had succeeded within a latency: failures keep a way below 100 %."""
    figure = go.Figure()
    for way in result.ways:
        latencies, shares = _success_curve(way)
        figure.add_scatter(
            x=latencies,
            y=shares,
            name=way.title,
            mode="lines",
            line={"color": way_colour(way), "width": 2.5},
            hovertemplate="%{y:.1f} % had succeeded within %{x:.0f} ms",
        )
    if _spans_decades(result):
        figure.update_xaxes(type="log", title="latency, ms (logarithmic)", tickvals=LATENCY_TICKS_MS)
    else:
        figure.update_xaxes(title="latency, ms")
    figure.update_yaxes(title="succeeded, % of all", range=[0, 104], ticksuffix=" %")
    return fragment(figure, "latency", height=360)


def outcomes_figure(result: DemoResult) -> str:
    """Draw what became of the invocations of each way: succeeded, and failed by error."""
    figure = go.Figure()
    titles = [way.title for way in result.ways]
    figure.add_bar(
        y=titles,
        x=[way.succeeded for way in result.ways],
        name="succeeded",
        orientation="h",
        marker={"color": WAY_COLOURS["emberpool"]},
    )
    for cause, colour in zip(causes(result), _failure_colours(), strict=False):
        figure.add_bar(
            y=titles,
            x=[way.failures.get(cause, 0) for way in result.ways],
            name=_wrapped(cause),
            orientation="h",
            marker={"color": colour},
        )
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=True)
    figure.update_xaxes(title="invocations")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return fragment(figure, "outcomes", height=150 + 56 * len(titles))


def way_colour(way: WayResult) -> str:
    """Return the colour that stands for this way everywhere on the page."""
    return WAY_COLOURS.get(way.name, OTHER_WAY_COLOUR)


def _shown_samples(way: WayResult) -> list[tuple[float, int]]:
    """Leave out the idle time before the first connection, and points that repeat what stands on both sides."""
    points = [(sample.seconds, sample.server_connections) for sample in way.samples]
    first = next((at for at, (seconds, count) in enumerate(points) if count or seconds >= 0), len(points))
    points = points[max(first - 1, 0) :]
    return [
        point
        for at, point in enumerate(points)
        if at in {0, len(points) - 1} or not points[at - 1][1] == point[1] == points[at + 1][1]
    ]


def _spans_decades(result: DemoResult) -> bool:
    latencies = [latency for way in result.ways for latency in way.latencies_ms]
    return bool(latencies) and max(latencies) > LINEAR_UP_TO * min(latencies)


def _success_curve(way: WayResult) -> tuple[list[float], list[float]]:
    ordered = sorted(way.latencies_ms)
    step = max(len(ordered) // CURVE_POINTS, 1)
    ranks = sorted({*range(0, len(ordered), step), len(ordered) - 1}) if ordered else []
    return [round(ordered[rank], 2) for rank in ranks], [round(100 * (rank + 1) / way.invocations, 3) for rank in ranks]


def _failure_colours() -> list[str]:
    return [*FAILURE_COLOURS, *[FAILURE_COLOURS[-1]] * 100]


def _wrapped(cause: str, width: int = 46) -> str:
    """Break a long error over two lines: a legend that is wider than a phone hides the plot."""
    if len(cause) <= width:
        return cause
    cut = cause.rfind(" ", 0, width)
    return f"{cause[:cut]}<br>{cause[cut + 1 :]}" if cut > 0 else cause
