"""The result as a table for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from emberpool_local.burst.results import DemoResult
from emberpool_local.report.wording import COLUMNS, causes, cells, count_text


def terminal_table(result: DemoResult) -> Table:
    """Return one column for each way and one row for each figure: that fits into 80 columns."""
    table = Table(header_style="bold", title_justify="left")
    table.add_column("")
    for way in result.ways:
        table.add_column(way.title, justify="right")
    figures = zip(COLUMNS, *(cells(way) for way in result.ways), strict=True)
    for name, *row in figures:
        if name == "failed":
            table.add_row(name, *(_failed(count) for count in row))
            _add_failures(table, result)
        else:
            table.add_row(name, *row)
    return table


def _failed(count: str) -> Text:
    return Text(count, style="bold green" if count == "0" else "bold red")


def _add_failures(table: Table, result: DemoResult) -> None:
    for cause in causes(result):
        counts = (way.failures.get(cause, 0) for way in result.ways)
        table.add_row(Text(f"  {cause}", style="dim"), *(count_text(count) if count else "" for count in counts))
