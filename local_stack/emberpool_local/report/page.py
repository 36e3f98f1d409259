"""The result as one HTML page that needs nothing but itself.

Owns the page's parts and where it is written; the words come from `wording`, the figures from `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from emberpool_local.burst.results import DemoResult, WayResult
from emberpool_local.burst.sampler import SAMPLES_PER_SECOND
from emberpool_local.report import wording
from emberpool_local.report.document import PageNotWritable, document, shown_moment, write_document
from emberpool_local.report.plots import connections_figure, latency_figure, outcomes_figure, way_colour
from emberpool_local.report.terminal import terminal_table

__all__ = ["PageNotWritable", "page", "terminal_table", "write_page"]

OWN_FUNCTION = """\
from emberpool import warm_connection

@warm_connection
def handler(event, context, connection):
    orders = connection.execute("select count(*) from orders")
    return orders.fetchone()[0]"""
NEXT_STEPS = (
    {
        "text": "Put it into your AWS account, from the repository's folder (with AWS credentials and docker):",
        "code": "make synth\nnpx cdk bootstrap\nnpx cdk deploy --all",
    },
    {"text": "Your own function is three lines and its query:", "code": OWN_FUNCTION},
    {
        "text": "Fire the burst at it, on this machine:",
        "code": "emberpool burst app:handler --event event.json --schema schema.sql",
    },
)


def write_page(result: DemoResult, path: Path, broken: Sequence[str] = ()) -> None:
    """Write the page; `broken` are the promises that this result does not keep, shown on top.

    Raises PageNotWritable.
    """
    write_document(page(result, broken), path)


def page(result: DemoResult, broken: Sequence[str] = ()) -> str:
    """Return the page as HTML: styles, plotly.js, figures and words in one text of about 5 MB."""
    # The figures are our own HTML and JavaScript; inside them plotly's JSON escapes every text of a user.
    return document(
        "page.html.j2",
        page_title="emberpool: " + ("the demo" if len(result.ways) > 1 else "a burst"),
        headline=wording.headline(result),
        subline=wording.subline(result),
        broken=broken,
        ways=[_shown(way) for way in result.ways],
        columns=wording.COLUMNS,
        connections_plot=Markup(connections_figure(result)),  # noqa: S704
        latency_plot=Markup(latency_figure(result)),  # noqa: S704
        outcomes_plot=Markup(outcomes_figure(result)),  # noqa: S704
        samples_per_second=SAMPLES_PER_SECOND,
        failures=_failures(result),
        method=wording.method(result),
        facts=_facts(result),
        next_steps=NEXT_STEPS,
        command=result.command,
        measured_at=shown_moment(result.measured_at),
    )


def _shown(way: WayResult) -> dict[str, Any]:
    return {
        "title": way.title,
        "how": way.how,
        "colour": way_colour(way),
        "failed": way.failed,
        "failed_share": wording.failed_share_text(way),
        "failed_text": wording.count_text(way.failed),
        "invocations_text": wording.count_text(way.invocations),
        "cells": wording.cells(way),
    }


def _failures(result: DemoResult) -> list[dict[str, str]]:
    return [
        {"way": way.title, "count": wording.count_text(count), "cause": cause}
        for way in result.ways
        for cause, count in sorted(way.failures.items(), key=lambda failure: -failure[1])
    ]


def _facts(result: DemoResult) -> list[tuple[str, str]]:
    machine, way = result.machine, result.ways[-1]
    facts = [
        ("Machine", f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB of memory"),
        ("System", machine.system),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("Burst", f"{way.environments} environments, {wording.count_text(way.invocations)} invocations"),
        ("Database", f"max_connections = {result.max_connections}"),
        ("Functions", ", ".join(f"{shown.handler} ({shown.title})" for shown in result.ways)),
    ]
    if result.max_server_connections is not None:
        facts.append(("Proxy", f"at most {result.max_server_connections} server connections"))
    init = ", ".join(f"{w.init_p50_ms:.0f} ms ({w.title})" for w in result.ways if w.init_p50_ms is not None)
    return [*facts, ("Init, p50", init)] if init else facts
