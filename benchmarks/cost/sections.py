"""The comparison in words, lines and plots; who is cheaper is said by the figures, whoever it is."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cost import prices
from benchmarks.cost.bills import (
    DATA_API,
    DNS_MODE,
    PROXY_PROVISIONED,
    PROXY_SERVERLESS,
    WAYS,
    Bill,
    bills,
    break_even_vcpus,
    endpoints_usd,
    proxy_usd,
)
from benchmarks.cost.workload import (
    BUSY_SHARE,
    PROXY_CPU_SECONDS,
    SLOWER_VCPU,
    VCPU_STEPS,
    TaskSize,
    Workload,
)
from benchmarks.lines import Line
from benchmarks.plots import Plot, Series
from benchmarks.section import Section

CLAIM = (
    "Dollars a month that each way to share a database's connections adds to the bill, for the same load. In brackets: "
    "environments x invocations a second of each, and its dollars against those of emberpool in DNS mode."
)


def cost_section(cases: Sequence[Sequence[Workload]]) -> Section:
    """Return the section of all cases: of each, the same load for growing numbers of environments."""
    workloads = [workload for case in cases for workload in case]
    return Section(
        "Cost",
        "\n".join((CLAIM, *verdicts(workloads))),
        [_line(workload, bill) for workload in workloads for bill in bills(workload).values()],
        [*(_plot(case) for case in cases), _size_plot(workloads[0])],
        method(workloads[0]),
        "",
    )


def verdicts(workloads: Sequence[Workload]) -> list[str]:
    """Say plainly when RDS Proxy or the Data API is cheaper than emberpool, and when they are not."""
    return [
        _against(workloads, PROXY_PROVISIONED, "RDS Proxy before a provisioned database"),
        f"Where two tasks are enough, it is cheaper up to {_most_vcpus()} vCPUs of the database; see the plot.",
        _against(workloads, PROXY_SERVERLESS, "RDS Proxy before Aurora Serverless v2"),
        _against(workloads, DATA_API, "The RDS Data API"),
    ]


def method(workload: Workload) -> str:
    """Say what the model takes for granted."""
    size = TaskSize()
    cpu_us, billed_us = PROXY_CPU_SECONDS * 1e6, PROXY_CPU_SECONDS * SLOWER_VCPU * 1e6
    return (
        f"Computed, not measured, from list prices of {prices.REGION} (benchmarks/cost/prices.py: each with its source "
        "and month). Environments are those alive at the busiest time, when there are "
        f"{workload.peak_factor:g} times as many invocations as in the mean of the month. An invocation is one "
        f"transaction with one statement, {workload.kilobytes:g} kB there and back, and one request to the Data API, "
        f"which is the least it can be. emberpool: tasks of {size.vcpus:g} vCPU and {size.gib:g} GB, "
        f"{size.least_tasks} at least, which run at up to {BUSY_SHARE:.0%} of their CPU; an invocation takes "
        f"{billed_us:.0f} µs of it (measured: {cpu_us:.0f} µs with TLS on both sides; a Fargate vCPU is taken to be "
        f"{SLOWER_VCPU:g} times slower). Half of what the tasks say to the database crosses zones; what RDS Proxy says "
        "to it is taken to cost nothing. The provisioned database is the smallest with a vCPU for "
        f"{workload.database_tps_per_vcpu:,.0f} such transactions a second at the busiest time; longer queries need a "
        "larger one. RDS Proxy is billed for the writer only: a standby that it may read from costs as much again. "
        + _left_out()
    )


def _left_out() -> str:
    return (
        "Not in it, as it is the same for all: the database, the functions, what they say to the proxy. Not in it "
        "either: the four interface endpoints that tasks need in a VPC without a NAT gateway "
        f"({endpoints_usd():.2f} USD a month in two zones), of which functions that read a secret need one anyway; "
        "that calls of the Data API take longer, which Lambda bills; and that RDS Proxy keeps an Aurora Serverless v2 "
        "from pausing. The Data API needs Aurora, and no VPC."
    )


def _against(workloads: Sequence[Workload], way: str, name: str) -> str:
    cases: dict[bool, list[str]] = {True: [], False: []}
    for workload in workloads:
        found = bills(workload)
        ours, theirs = found[DNS_MODE].usd, found[way].usd
        cases[theirs < ours].append(f"{_case(workload)}: {theirs:,.0f} against {ours:,.0f}")
    parts = [
        f"{word} than emberpool ({'; '.join(cases[is_cheaper])})"
        for is_cheaper, word in ((True, "cheaper"), (False, "dearer"))
        if cases[is_cheaper]
    ]
    return f"{name} is {', and '.join(parts)}."


def _most_vcpus() -> int:
    """Return the most vCPUs for which RDS Proxy is cheaper than two tasks with next to no load."""
    return int(break_even_vcpus(bills(Workload(1, 1e-6))[DNS_MODE]))


def _case(workload: Workload) -> str:
    return f"{workload.environments:,} x {workload.invocations_per_second:g}/s"


def _line(workload: Workload, bill: Bill) -> Line:
    items = ", ".join(f"{name} {usd:,.2f}" for name, usd in bill.items.items())
    return Line(f"{_case(workload)}: {bill.way} ({items})", "USD a month", [bill.usd], 2)


def _plot(case: Sequence[Workload]) -> Plot:
    found = [bills(workload) for workload in case]
    series = [
        Series(way, [workload.environments for workload in case], [bill[way].usd for bill in found]) for way in WAYS
    ]
    return Plot(
        f"{case[0].invocations_per_second:g} invocations a second and environment",
        "lines",
        "environments",
        "USD a month",
        series,
        log_x=True,
        log_y=True,
        note="In the mean of the month; lower is better.",
    )


def _size_plot(workload: Workload) -> Plot:
    """Draw RDS Proxy's bill by the size of the database, which emberpool's does not depend on."""
    ours = bills(workload)[DNS_MODE].usd
    proxy = [proxy_usd(vcpus) for vcpus in VCPU_STEPS]
    return Plot(
        "By the size of a provisioned database",
        "lines",
        "vCPUs of the database",
        "USD a month",
        [Series(DNS_MODE, VCPU_STEPS, [ours] * len(VCPU_STEPS)), Series(PROXY_PROVISIONED, VCPU_STEPS, proxy)],
        log_x=True,
        log_y=True,
        note=f"For {_case(workload)}. What needs a larger database may be its queries, not its functions.",
    )
