"""`emberpool status`: the pool of a running proxy as a table, live when it is asked for.

What is shown, and in which words, is the proxy's own (`emberpool_proxy.telemetry.status_view`).
"""

from __future__ import annotations

import json
import time

import click
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from emberpool_local.errors import LocalStackError
from emberpool_local.running_stack import find_running
from emberpool_proxy.telemetry.status_view import (
    COLUMNS,
    NAMES,
    Look,
    StatusUnavailable,
    StatusView,
    fetch,
    text_of,
    view,
)


class ProxyDoesNotAnswer(LocalStackError):  # noqa: N818 (named by what is the matter, as all errors of emberpool)
    """No proxy answers where it was looked for."""


def show_status(console: Console, url: str | None, as_json: bool = False, watch_seconds: float | None = None) -> None:
    """Show the proxy at `url`, or that of the running `emberpool up`, every `watch_seconds` until Ctrl-C if given.

    Raises ProxyDoesNotAnswer.
    """
    address = url or running_url()
    if as_json:
        _print_json(address, watch_seconds)
    elif watch_seconds:
        _show_live(console, address, watch_seconds)
    elif console.is_terminal:
        console.print(_picture(view(_fetched(address))))
    else:
        click.echo(text_of(view(_fetched(address))))  # a pipe has no width to fit into


def running_url() -> str:
    """Return where the proxy of the running `emberpool up` tells its status. Raises ProxyDoesNotAnswer."""
    running = find_running()
    if running is None or not running.status_url:
        raise ProxyDoesNotAnswer(
            "no local stack is running", "run `emberpool up` in another terminal, or name a proxy with --url"
        )
    return running.status_url


def _fetched(url: str) -> Look:
    try:
        return fetch(url)
    except StatusUnavailable as error:
        raise ProxyDoesNotAnswer(
            str(error), "start the proxy, or name one that runs: --url http://HOST:8080 (its health port)"
        ) from error


def _print_json(url: str, watch_seconds: float | None) -> None:
    while True:
        click.echo(json.dumps(_fetched(url).document))
        if not watch_seconds:
            return
        time.sleep(watch_seconds)


def _show_live(console: Console, url: str, watch_seconds: float) -> None:
    look = _fetched(url)
    with Live(_picture(view(look)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(watch_seconds)
            before, look = look, _fetched(url)
            live.update(_picture(view(look, before)), refresh=True)


def _picture(shown: StatusView) -> Group:
    facts = Table.grid(padding=(0, 2))
    for name, value in shown.facts:
        style = "bold red" if name == "proxy" and not shown.is_ready else ""
        facts.add_row(Text(name, style="dim"), Text(value, style=style))
    pools = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(COLUMNS):
        if index < NAMES:
            pools.add_column(name, no_wrap=True, overflow="ellipsis")
        else:
            pools.add_column(name, justify="right", no_wrap=True)
    for row in shown.rows:
        pools.add_row(*map(escape, row))
    return Group(facts, pools) if shown.rows else Group(facts)
