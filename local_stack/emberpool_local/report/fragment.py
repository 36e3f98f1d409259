"""A figure as an HTML fragment that needs plotly.js once on the page: the manner that all our pages share.

Ink, grid and background are left to the page's style sheet, so that dark and light mode need no second figure.
"""

from __future__ import annotations

import plotly.graph_objects as go  # type: ignore[import-untyped]

# The page's own ink replaces it (see .plot in style.css); seen only when the style sheet is missing.
NEUTRAL = "#808894"


def fragment(figure: go.Figure, name: str, height: int, margin_top: int = 8) -> str:
    """Return the figure in the pages' manner; `name` is its own on the page, sizes are in pixels."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": margin_top, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": NEUTRAL},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left", "traceorder": "normal"},
        hovermode="closest",
        dragmode=False,
        template="none",
    )
    figure.update_xaxes(gridcolor=NEUTRAL, zeroline=False, automargin=True, fixedrange=True, griddash="dot")
    figure.update_yaxes(
        gridcolor=NEUTRAL, zeroline=False, automargin=True, fixedrange=True, griddash="dot", ticklabelstandoff=6
    )
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return html
