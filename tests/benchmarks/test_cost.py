"""The bills are what the price lists say, by hand computed, and the words follow the figures."""

from __future__ import annotations

import pytest
from benchmarks.cost import prices
from benchmarks.cost.bills import (
    DATA_API,
    DNS_MODE,
    NLB_MODE,
    PROXY_PROVISIONED,
    PROXY_SERVERLESS,
    bills,
    break_even_vcpus,
    endpoints_usd,
)
from benchmarks.cost.sections import cost_section, verdicts
from benchmarks.cost.workload import TaskSize, Workload

QUIET = Workload(100, 0.05)
BUSY = Workload(10_000, 0.5)


def usd(way: str, workload: Workload) -> float:
    return bills(workload)[way].usd


def test_two_idle_tasks_cost_what_fargate_bills() -> None:
    """Two tasks of half a vCPU and 1 GB for 730 hours, two secrets, a zone, 18 metrics: nothing else without load."""
    tasks = 2 * (0.5 * 0.03238 + 1 * 0.00356) * 730
    assert usd(DNS_MODE, Workload(1, 1e-9)) == pytest.approx(
        tasks + 2 * 0.40 + 0.50 + 18 * 0.30 + 2 * 0.1 * 0.50, abs=0.01
    )


def test_load_balancer_adds_its_hours_and_units() -> None:
    """NLB mode is DNS mode with 0.0225 an hour and the capacity units of what needs most of them: here the bytes."""
    extra = usd(NLB_MODE, BUSY) - usd(DNS_MODE, BUSY)
    gigabytes_an_hour = 10_000 * 0.5 * 3600 * 2e-6
    assert extra == pytest.approx(730 * (0.0225 + gigabytes_an_hour * 0.006))


def test_many_idle_connections_need_units_too() -> None:
    """Where next to nothing is said, connections that are held make the load balancer's units."""
    held = Workload(200_000, 1e-6)
    assert bills(held)[NLB_MODE].items["its capacity units"] == pytest.approx(2 * 0.006 * 730)


def test_rds_proxy_has_its_minimum_charges() -> None:
    """Two vCPUs and eight ACUs are billed at least; above that, what the load needs."""
    assert usd(PROXY_PROVISIONED, QUIET) == pytest.approx(2 * 0.015 * 730)
    assert usd(PROXY_SERVERLESS, QUIET) == pytest.approx(8 * 0.015 * 730)
    assert usd(PROXY_PROVISIONED, BUSY) == pytest.approx(32 * 0.015 * 730)  # 20,000 transactions/s at the busiest
    assert usd(PROXY_SERVERLESS, BUSY) == pytest.approx(20 * 0.015 * 730)  # 5,000 in the mean


def test_data_api_has_two_tiers() -> None:
    """0.35 for each million up to a thousand million requests, 0.20 beyond."""
    seconds = 730 * 3600
    assert usd(DATA_API, QUIET) == pytest.approx(100 * 0.05 * seconds / 1e6 * 0.35)
    requests = 10_000 * 0.5 * seconds
    assert usd(DATA_API, BUSY) == pytest.approx(1000 * 0.35 + (requests / 1e6 - 1000) * 0.20)


@pytest.mark.parametrize(
    ("tps", "clients", "tasks"),
    [(1, 10, 2), (3600, 10, 2), (3800, 10, 3), (1, 9_600, 2), (1, 9_601, 3), (100_000, 1, 54)],
)
def test_tasks_follow_cpu_and_clients(tps: float, clients: int, tasks: int) -> None:
    """As many as 60 % of their CPU and 60 % of 8,000 clients ask for, two at least."""
    assert TaskSize().tasks(tps, clients) == tasks


def test_every_bill_grows_with_the_load() -> None:
    """No way gets cheaper with more environments or more invocations."""
    loads = [Workload(environments, rate) for rate in (0.01, 0.1, 1.0) for environments in (100, 1_000, 10_000)]
    for smaller, larger in ((a, b) for a in loads for b in loads):
        if (
            smaller.environments <= larger.environments
            and smaller.invocations_per_second <= larger.invocations_per_second
        ):
            for way, bill in bills(smaller).items():
                assert bill.usd <= bills(larger)[way].usd + 1e-9, (way, smaller, larger)


def test_items_add_up_and_none_is_negative() -> None:
    """A bill is the sum of its items."""
    for workload in (QUIET, BUSY):
        for bill in bills(workload).values():
            assert all(item >= 0 for item in bill.items.values())
            assert bill.usd == pytest.approx(sum(bill.items.values()))


def test_who_is_cheaper_is_said_plainly() -> None:
    """A small provisioned database is cheaper behind RDS Proxy, and the verdict says so; a large one is not."""
    provisioned, small, serverless, data_api = verdicts([QUIET, BUSY])
    assert (
        "RDS Proxy before a provisioned database is cheaper than emberpool (100 x 0.05/s: 22 against 36)" in provisioned
    )
    assert "dearer than emberpool (10,000 x 0.5/s" in provisioned
    assert "up to 3 vCPUs" in small
    assert "cheaper than emberpool (10,000 x 0.5/s" in serverless
    assert "The RDS Data API is cheaper than emberpool (100 x 0.05/s" in data_api


def test_break_even_is_where_the_bills_are_equal() -> None:
    """From so many vCPUs on, RDS Proxy costs more than this bill."""
    ours = bills(QUIET)[DNS_MODE]
    vcpus = break_even_vcpus(ours)
    assert vcpus * prices.PROXY_VCPU.usd * prices.HOURS_A_MONTH == pytest.approx(ours.usd)
    assert 2 < vcpus < 4


def test_verdict_of_one_side_has_no_other() -> None:
    """Where every case is dearer, nobody is called cheaper."""
    (_, _, serverless, _) = verdicts([QUIET])
    assert "cheaper" not in serverless


def test_prices_agree_with_what_the_constructs_say() -> None:
    """The endpoints' price and count, the metrics' and the tasks' size are those that the constructs document."""
    from emberpool_cdk import pool_endpoints

    assert prices.INTERFACE_ENDPOINT.usd == pool_endpoints.USD_AN_HOUR
    assert endpoints_usd() == pytest.approx(2 * sum(each.usd_a_month_and_zone for each in pool_endpoints.ENDPOINTS))
    import inspect

    from benchmarks.cost.bills import METRICS
    from benchmarks.cost.workload import BUSY_SHARE

    from emberpool_cdk.pool_proxy import PoolProxy
    from emberpool_cdk.pool_service import SCALE_AT_CLIENTS_PERCENT, SCALE_AT_CPU_PERCENT
    from emberpool_proxy.settings import ProxySettings

    defaults = inspect.signature(PoolProxy.__init__).parameters
    size = TaskSize()
    assert size.vcpus * 1024 == defaults["cpu"].default
    assert size.gib * 1024 == defaults["memory_limit_mib"].default
    assert size.least_tasks == defaults["min_tasks"].default
    assert size.most_clients == ProxySettings.max_client_connections
    assert BUSY_SHARE * 100 == SCALE_AT_CPU_PERCENT == SCALE_AT_CLIENTS_PERCENT
    assert f"({METRICS} of them: {METRICS * prices.METRIC.usd:.2f} USD a month)" in " ".join(
        (PoolProxy.__doc__ or "").split()
    )


def test_every_price_says_where_it_stands() -> None:
    """Each has AWS's page and what it was taken from, and stands once."""
    assert len({price.what for price in prices.PRICES}) == len(prices.PRICES)
    for price in prices.PRICES:
        assert price.usd > 0
        assert price.source.startswith("https://aws.amazon.com/")
        assert price.basis in (prices.COPY, prices.KNOWN)


def test_section_has_a_line_for_each_bill() -> None:
    """Every way of every case is a line in dollars, and a point of a plot."""
    section = cost_section([[QUIET], [BUSY]])
    assert len(section.lines) == 10
    assert {line.unit for line in section.lines} == {"USD a month"}
    assert len(section.plots) == 3
    assert section.missed == []


@pytest.mark.parametrize(
    "wrong", [{"environments": 0}, {"invocations_per_second": -1.0}, {"peak_factor": 0.5}, {"kilobytes": 0.0}]
)
def test_impossible_load_is_refused(wrong: dict[str, float]) -> None:
    """The field, the value and what is allowed are named."""
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value:g}"):
        Workload(**{"environments": 100, "invocations_per_second": 0.1, **wrong})
