"""What each way costs a month: what it adds to the bill of a database and its functions, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cost import prices
from benchmarks.cost.prices import HOURS_A_MONTH
from benchmarks.cost.workload import TaskSize, Workload

DNS_MODE, NLB_MODE = "emberpool, DNS mode", "emberpool, NLB mode"
PROXY_PROVISIONED, PROXY_SERVERLESS = "RDS Proxy, provisioned", "RDS Proxy, Serverless v2"
DATA_API = "RDS Data API"
WAYS = (DNS_MODE, NLB_MODE, PROXY_PROVISIONED, PROXY_SERVERLESS, DATA_API)

SECRETS = 2  # the functions' password and the proxy's CA; the database's own secret is there with RDS Proxy, too
METRICS = 18  # the proxy's, through its log
LOG_GB_OF_A_TASK = 0.1  # a month: one line of metrics a minute, and logins refused
OTHER_ZONE_SHARE = 0.5  # of what tasks in two zones exchange with a database in one of them
ENDPOINT_SERVICES, ZONES = 4, 2  # of a VPC without a way out: ecr.api, ecr.dkr, logs, secretsmanager


@dataclass(frozen=True)
class Bill:
    """One way's month in US dollars."""

    way: str
    items: Mapping[str, float]

    @property
    def usd(self) -> float:
        return sum(self.items.values())


def bills(workload: Workload, size: TaskSize | None = None) -> dict[str, Bill]:
    """Return every way's bill for the same workload."""
    task = size or TaskSize()
    return {
        DNS_MODE: Bill(DNS_MODE, _emberpool(workload, task)),
        NLB_MODE: Bill(NLB_MODE, _emberpool(workload, task) | _balancer(workload)),
        PROXY_PROVISIONED: Bill(PROXY_PROVISIONED, _proxy_provisioned(workload)),
        PROXY_SERVERLESS: Bill(PROXY_SERVERLESS, _proxy_serverless(workload)),
        DATA_API: Bill(DATA_API, _data_api(workload)),
    }


def _emberpool(workload: Workload, size: TaskSize) -> dict[str, float]:
    """Bill the tasks of the mean load, with all clients connected: tasks come and go with the load."""
    tasks = size.tasks(workload.mean_tps, workload.environments)
    hourly = size.vcpus * prices.FARGATE_VCPU.usd + size.gib * prices.FARGATE_GIB.usd
    return {
        f"{tasks} tasks": tasks * hourly * HOURS_A_MONTH,
        "secrets": SECRETS * prices.SECRET.usd,
        # Each new connection may ask once; that AWS bills a private zone's queries is the worse case for us.
        "names": prices.HOSTED_ZONE.usd + workload.connections_a_month / 1e6 * prices.DNS_QUERIES.usd,
        "metrics and logs": METRICS * prices.METRIC.usd + tasks * LOG_GB_OF_A_TASK * prices.LOG.usd,
        "between zones, to the database": workload.gigabytes_a_month * OTHER_ZONE_SHARE * prices.BETWEEN_ZONES.usd,
    }


def _balancer(workload: Workload) -> dict[str, float]:
    """Bill the load balancer."""
    hours = HOURS_A_MONTH
    units = max(
        workload.connections_a_month / hours / 3600 / prices.NEW_CONNECTIONS_OF_A_UNIT,
        workload.environments / prices.CONNECTIONS_OF_A_UNIT,
        workload.gigabytes_a_month / hours / prices.GB_OF_A_UNIT,
    )
    return {
        "load balancer": prices.BALANCER.usd * hours,
        "its capacity units": units * prices.CAPACITY_UNIT.usd * hours,
    }


def _proxy_provisioned(workload: Workload) -> dict[str, float]:
    return {f"{workload.database_vcpus} vCPUs of the database": proxy_usd(workload.database_vcpus)}


def _proxy_serverless(workload: Workload) -> dict[str, float]:
    acus = max(workload.mean_acus, prices.LEAST_PROXY_ACUS)
    return {f"{acus:g} ACUs of the database": acus * prices.PROXY_ACU.usd * HOURS_A_MONTH}


def _data_api(workload: Workload) -> dict[str, float]:
    """Bill one request an invocation, the least there can be: a transaction of several statements is several."""
    requests = workload.invocations_a_month
    first = min(requests, prices.DATA_API_FIRST_TIER)
    usd = first / 1e6 * prices.DATA_API.usd + (requests - first) / 1e6 * prices.DATA_API_BEYOND.usd
    return {f"{requests / 1e6:,.0f} million requests": usd}


def proxy_usd(vcpus: int) -> float:
    """Return what RDS Proxy costs before a provisioned database of that size."""
    return max(vcpus, prices.LEAST_PROXY_VCPUS) * prices.PROXY_VCPU.usd * HOURS_A_MONTH


def endpoints_usd() -> float:
    """Return what the tasks' interface endpoints cost in a VPC that has no NAT gateway and none of them yet."""
    return ENDPOINT_SERVICES * ZONES * prices.INTERFACE_ENDPOINT.usd * HOURS_A_MONTH


def break_even_vcpus(way: Bill) -> float:
    """Return from how many vCPUs of a provisioned database on RDS Proxy costs more than this bill."""
    return way.usd / (prices.PROXY_VCPU.usd * HOURS_A_MONTH)
