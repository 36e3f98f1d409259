"""AWS's list prices that the comparison needs: the one table, with where each stands and when it was read.

US East (N. Virginia), on demand, without free tiers, discounts and taxes. Prices change: look at the source before you
decide by a difference of a few dollars. The database, the functions and their logs cost the same either way and are
not here.
"""

from __future__ import annotations

from dataclasses import dataclass

REGION = "us-east-1"
HOURS_A_MONTH = 730.0
SECONDS_A_MONTH = HOURS_A_MONTH * 3600


@dataclass(frozen=True)
class Price:
    """One list price in US dollars; `read` is the month in which the source said so."""

    what: str
    usd: float
    unit: str
    source: str
    read: str


FARGATE = "https://aws.amazon.com/fargate/pricing/"
BALANCERS = "https://aws.amazon.com/elasticloadbalancing/pricing/"
PROXY = "https://aws.amazon.com/rds/proxy/pricing/"
AURORA = "https://aws.amazon.com/rds/aurora/pricing/"
TRANSFER = "https://aws.amazon.com/ec2/pricing/on-demand/"
SECRETS = "https://aws.amazon.com/secrets-manager/pricing/"
ROUTE_53 = "https://aws.amazon.com/route53/pricing/"
CLOUDWATCH = "https://aws.amazon.com/cloudwatch/pricing/"
PRIVATELINK = "https://aws.amazon.com/privatelink/pricing/"

FARGATE_VCPU = Price("Fargate, Linux on ARM: a vCPU", 0.03238, "hour", FARGATE, "2026-03")
FARGATE_GIB = Price("Fargate, Linux on ARM: a GB of memory", 0.00356, "hour", FARGATE, "2026-03")
BALANCER = Price("Network Load Balancer", 0.0225, "hour", BALANCERS, "2026-09")
CAPACITY_UNIT = Price("Network Load Balancer: a capacity unit (NLCU)", 0.006, "hour", BALANCERS, "2026-09")
PROXY_VCPU = Price("RDS Proxy, provisioned database: a vCPU of it, 2 at least", 0.015, "hour", PROXY, "2026-08")
PROXY_ACU = Price("RDS Proxy, Aurora Serverless v2: an ACU of it, 8 at least", 0.015, "hour", PROXY, "2026-08")
DATA_API = Price("RDS Data API: the first thousand million requests", 0.35, "million", AURORA, "2026-06")
DATA_API_BEYOND = Price("RDS Data API: those beyond", 0.20, "million", AURORA, "2026-06")
BETWEEN_ZONES = Price("Data between zones, charged at both ends", 0.02, "GB", TRANSFER, "2026-04")
SECRET = Price("Secrets Manager: a secret", 0.40, "month", SECRETS, "2026-05")
HOSTED_ZONE = Price("Route 53: a private hosted zone", 0.50, "month", ROUTE_53, "2026-09")
DNS_QUERIES = Price("Route 53: DNS queries", 0.40, "million", ROUTE_53, "2026-09")
METRIC = Price("CloudWatch: a metric", 0.30, "month", CLOUDWATCH, "2026-05")
LOG = Price("CloudWatch: logs, taken in", 0.50, "GB", CLOUDWATCH, "2026-05")
INTERFACE_ENDPOINT = Price("An interface endpoint in one zone", 0.01, "hour", PRIVATELINK, "2026-05")

PRICES = (
    FARGATE_VCPU,
    FARGATE_GIB,
    BALANCER,
    CAPACITY_UNIT,
    PROXY_VCPU,
    PROXY_ACU,
    DATA_API,
    DATA_API_BEYOND,
    BETWEEN_ZONES,
    SECRET,
    HOSTED_ZONE,
    DNS_QUERIES,
    METRIC,
    LOG,
    INTERFACE_ENDPOINT,
)

# What one NLCU holds of TCP, by the same page; what takes most of them counts.
NEW_CONNECTIONS_OF_A_UNIT = 800.0  # a second
CONNECTIONS_OF_A_UNIT = 100_000.0
GB_OF_A_UNIT = 1.0  # an hour
LEAST_PROXY_VCPUS = 2
LEAST_PROXY_ACUS = 8.0
DATA_API_FIRST_TIER = 1_000_000_000
