"""`python -m benchmarks.cost` (make bench-cost): dollars a month on emberpool, RDS Proxy and the RDS Data API.

Computed from a table of list prices for a load that the options describe; it measures nothing and asks nobody.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.command import add_outputs, at_least_one, make_console, write_page, write_results
from benchmarks.cost import prices
from benchmarks.cost.bills import WAYS, bills
from benchmarks.cost.sections import cost_section, method, verdicts
from benchmarks.cost.workload import DEFAULT_ENVIRONMENTS, DEFAULT_RATES, Workload
from benchmarks.section import sections_json
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """The command line."""

    cases: Sequence[Sequence[Workload]]
    shows_prices: bool
    output: Path | None
    page: Path | None


def main() -> None:
    """Compute, print, and write the JSON file and the page."""
    options = _options()
    console = make_console()
    workloads = [workload for case in options.cases for workload in case]
    console.print(_cost_table(workloads))
    for sentence in verdicts(workloads):
        console.print(f"- {sentence}")
    if options.shows_prices:
        console.print(_price_table())
    console.print(method(workloads[0]))
    section = cost_section(options.cases)
    write_results(options.output, _results(workloads) | {"sections": sections_json([section])})
    write_page(options.page, [section], "make bench-cost")


def _results(workloads: Sequence[Workload]) -> dict[str, object]:
    return {
        "region": prices.REGION,
        "prices": [asdict(price) for price in prices.PRICES],
        "bills": [
            {"workload": asdict(workload), "bills": {way: dict(bill.items) for way, bill in bills(workload).items()}}
            for workload in workloads
        ],
    }


def _cost_table(workloads: Sequence[Workload]) -> Table:
    table = Table("environments", "invocations/s each", *WAYS, title="USD a month")
    for workload in workloads:
        found = bills(workload)
        least = min(bill.usd for bill in found.values())
        table.add_row(
            f"{workload.environments:,}",
            f"{workload.invocations_per_second:g}",
            *(f"[bold]{bill.usd:,.0f}[/]" if bill.usd == least else f"{bill.usd:,.0f}" for bill in found.values()),
        )
    return table


def _price_table() -> Table:
    table = Table(f"list price, {prices.REGION}, {prices.AS_OF}", "USD", "for each", "from", "source")
    for price in prices.PRICES:
        table.add_row(price.what, f"{price.usd:g}", price.unit, price.basis, price.source)
    return table


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument(
        "--environments", type=at_least_one, nargs="+", default=DEFAULT_ENVIRONMENTS, help="(default 100 1000 10000)"
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=DEFAULT_RATES,
        help="invocations a second and environment (default 0.05 0.5)",
    )
    parser.add_argument("--peak-factor", type=float, default=Workload.peak_factor, help="busiest to mean (default 4)")
    parser.add_argument("--kilobytes", type=float, default=Workload.kilobytes, help="of an invocation (default 2)")
    parser.add_argument(
        "--database-tps-per-vcpu",
        type=float,
        default=Workload.database_tps_per_vcpu,
        help="what a vCPU of the database bears (default 1000)",
    )
    parser.add_argument("--prices", action="store_true", help="also print the list prices and where they stand")
    add_outputs(parser)
    given = parser.parse_args()
    try:
        cases = [
            [
                Workload(
                    environments,
                    rate,
                    peak_factor=given.peak_factor,
                    kilobytes=given.kilobytes,
                    database_tps_per_vcpu=given.database_tps_per_vcpu,
                )
                for environments in given.environments
            ]
            for rate in given.rates
        ]
    except ValueError as error:
        parser.error(str(error))
    return Options(cases, given.prices, given.output, given.page)


if __name__ == "__main__":
    main()
