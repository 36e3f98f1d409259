"""`emberpool fleet`: the tasks that share a connection budget as a table, live when it is asked for.

Who is asked and what is shown, in which words, is the proxy's own: `fleet_look` and `fleet_view` in its telemetry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emberpool_local.status import ProxyDoesNotAnswer, running_url
from emberpool_proxy.telemetry.fleet_look import FleetLook, look
from emberpool_proxy.telemetry.fleet_view import (
    BLOCKS,
    COLUMNS,
    LONGEST_BAR,
    NAMES,
    PLAIN_BLOCKS,
    SHORTEST_BAR,
    TROUBLE,
    FleetPicture,
    document,
    picture,
    text_of,
)
from emberpool_proxy.telemetry.status_view import StatusUnavailable

GAP = 2  # between two columns
STATE, WAITING = COLUMNS.index("state"), COLUMNS.index("waiting")
STATE_STYLES = {"sharing": "green", "asleep": "dim", "draining": "yellow"} | dict.fromkeys(TROUBLE, "bold red")


def show_fleet(console: Console, url: str | None, as_json: bool = False, watch_seconds: float | None = None) -> None:
    """Show the fleet of the proxy at `url`, or of the running `emberpool up`, every `watch_seconds` until Ctrl-C.

    Raises ProxyDoesNotAnswer when no task answers.
    """
    next_look = _looks(url or running_url())
    if as_json:
        while True:
            click.echo(json.dumps(document(next_look())))
            if not watch_seconds:
                return
            time.sleep(watch_seconds)
    elif watch_seconds:
        with Live(_table(console, picture(next_look())), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(watch_seconds)
                live.update(_table(console, picture(next_look())), refresh=True)
    elif console.is_terminal:
        console.print(_table(console, picture(next_look())))
    else:
        click.echo(text_of(picture(next_look())))  # a pipe has no width to fit into


def _looks(url: str) -> Callable[[], FleetLook]:
    """Return what looks at the fleet; a task that has ended meanwhile is not needed to find the others."""
    others: tuple[str, ...] = ()

    def next_look() -> FleetLook:
        nonlocal others
        try:
            seen = look(url, others)
        except StatusUnavailable as error:
            raise ProxyDoesNotAnswer(
                str(error), "start the proxy, or name one that runs: --url http://HOST:8080 (its health port)"
            ) from error
        others = seen.urls
        return seen

    return next_look


def _table(console: Console, shown: FleetPicture) -> Group:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < NAMES else "right", no_wrap=True)
    rows = [*shown.rows, shown.sums]
    taken = sum(max(len(row[column]) for row in (COLUMNS, *rows)) + GAP for column in range(len(COLUMNS)))
    room = min(console.width - taken, LONGEST_BAR)
    bars = [""] * len(rows)
    if room >= SHORTEST_BAR:
        blocks = BLOCKS if console.encoding.startswith("utf") else PLAIN_BLOCKS
        bars = [*(share.bar(room, blocks) for share in shown.shares), ""]
        table.add_column("share", no_wrap=True)
    for row, bar in zip(rows, bars, strict=True):
        cells = [*map(_cell, range(len(row)), row), *([Text(bar, style="cyan")] if room >= SHORTEST_BAR else [])]
        table.add_row(*cells, style="bold" if row is shown.sums else "")
    warnings = [Text(f"! {warning}", style="bold red") for warning in shown.warnings]
    return Group(table, Text(), Text(shown.budget), *warnings)


def _cell(column: int, text: str) -> Text:
    if column == STATE:
        return Text(text, style=STATE_STYLES.get(text, ""))
    return Text(text, style="yellow" if column == WAITING and text not in ("", "0") else "")
