"""Writes the tables of docs/ from the code that they describe: `make docs`. A test fails when they are out of date."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from emberpool.metrics import METRICS
from emberpool.settings import LayerSettings
from emberpool_local.lab.faults import FAULTS
from emberpool_proxy.pgbouncer.config import CHANGED_DEFAULTS
from emberpool_proxy.settings import ProxySettings, variable

FOLDER = Path(__file__).parent
END = "<!-- end -->"
sys.path.insert(0, str(FOLDER.parent / "infra"))  # our app is no part of the wheel
sys.path.append(str(FOLDER.parent))  # nor are the benchmarks
# Read when aws_cdk is imported: jsii's banner about Node's age would hide what matters.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

from benchmarks.cost.bills import WAYS, bills  # noqa: E402
from benchmarks.cost.prices import PRICES  # noqa: E402
from benchmarks.cost.workload import DEFAULT_CASES  # noqa: E402

from emberpool_app.context import CONTEXT  # noqa: E402
from emberpool_cdk.pool_endpoints import ENDPOINTS, NOT_NEEDED, PRICES_OF  # noqa: E402
from emberpool_cdk.tuned_parameters import tuned_parameters  # noqa: E402


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings_rows(settings: type, prefix: str) -> list[list[str]]:
    """Return variable, default and meaning of each field of a settings class."""
    rows = []
    for field in dataclasses.fields(settings):
        default = "(must be set)" if field.default is dataclasses.MISSING else f"`{field.default}`"
        if default in ("`None`", "``"):
            default = ""
        if field.metadata["help"].startswith("(no variable"):
            continue
        rows.append([f"`{prefix}{field.name.upper()}`", default, field.metadata["help"]])
    return rows


def generated() -> dict[str, str]:
    """Return each generated part by its name."""
    header = ("variable", "default", "meaning")
    return {
        "layer": table(header, settings_rows(LayerSettings, "EMBERPOOL_")),
        "metrics": table(
            ("metric", "unit", "meaning"), ([f"`{metric.name}`", metric.unit, metric.help] for metric in METRICS)
        ),
        "proxy": table(header, settings_rows(ProxySettings, variable(""))),
        "pgbouncer": table(
            ("setting", "value", "why"), ([f"`{name}`", f"`{value}`", why] for name, value, why in CHANGED_DEFAULTS)
        ),
        "context": table(
            ("context value", "default", "meaning"),
            (
                [
                    f"`{row.name}`",
                    f"`{row.default}`" if row.default else ("", row.default_text)[row.is_needed],
                    row.help,
                ]
                for row in CONTEXT
            ),
        ),
        "endpoints": table(
            ("endpoint", "for whom", "what for", f"USD a month and zone ({PRICES_OF})"),
            (
                [f"`{each.service}`", each.used_by, each.reason, f"{each.usd_a_month_and_zone:.2f}"]
                for each in ENDPOINTS
            ),
        ),
        "no endpoints": table(("not needed", "because"), ([f"`{name}`", why] for name, why in NOT_NEEDED)),
        "cost": table(
            ("environments", "invocations a second of each", *(f"{way}, USD a month" for way in WAYS)),
            (
                [
                    f"{workload.environments:,}",
                    f"{workload.invocations_per_second:g}",
                    *(f"{bill.usd:,.0f}" for bill in bills(workload).values()),
                ]
                for case in DEFAULT_CASES
                for workload in case
            ),
        ),
        "prices": table(
            ("list price", "USD", "for each", "from"),
            ([f"[{price.what}]({price.source})", f"{price.usd:g}", price.unit, price.basis] for price in PRICES),
        ),
        "faults": table(
            ("fault", "what happens", "what must hold", "invocations that may fail"),
            (
                [f"`{each.name}`", each.title, each.promise, "none" if each.may_fail_seconds is None else "in flight"]
                for each in FAULTS.values()
            ),
        ),
        "parameters": table(
            ("parameter", "value", "why"),
            ([f"`{each.name}`", f"`{each.value}`", each.reason] for each in tuned_parameters()),
        ),
    }


def page_with_tables(text: str) -> str:
    """Return a page with each generated part between its two marks."""
    for name, part in generated().items():
        mark = f"<!-- generated: {name} -->\n"
        before, found, after = text.partition(mark)
        if found:
            text = f"{before}{mark}\n{part}\n\n{END}{after.partition(END)[2]}"
    return text


def main() -> None:
    """Write the pages."""
    for page in sorted(FOLDER.glob("*.md")):
        page.write_text(page_with_tables(page.read_text()))


if __name__ == "__main__":
    main()
