"""AWS's list prices that the comparison needs: the one table, with where each stands and what it was taken from.

AWS's own pages could not be read from where this was written: a price is from a copy of its page, or from what was
known of it, and each says which. US East (N. Virginia), on demand, without free tiers, discounts and taxes. Prices
change: look at the source before you decide by a difference of a few dollars. The database, the functions and their
logs cost the same either way and are not here.
"""

from __future__ import annotations

from dataclasses import dataclass

REGION = "us-east-1"
HOURS_A_MONTH = 730.0
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
AS_OF = "2026-11"
COPY, KNOWN = "a copy of the page", "known, not read again"


@dataclass(frozen=True)
class Price:
    """One list price in US dollars; `basis` is what it was taken from, `source` where it stands."""

    what: str
    usd: float
    unit: str
    source: str
    basis: str


FARGATE = "https://aws.amazon.com/fargate/pricing/"
BALANCERS = "https://aws.amazon.com/elasticloadbalancing/pricing/"
PROXY = "https://aws.amazon.com/rds/proxy/pricing/"
AURORA = "https://aws.amazon.com/rds/aurora/pricing/"
TRANSFER = "https://aws.amazon.com/ec2/pricing/on-demand/"
SECRETS = "https://aws.amazon.com/secrets-manager/pricing/"
ROUTE_53 = "https://aws.amazon.com/route53/pricing/"
CLOUDWATCH = "https://aws.amazon.com/cloudwatch/pricing/"
PRIVATELINK = "https://aws.amazon.com/privatelink/pricing/"

FARGATE_VCPU = Price("Fargate, Linux on ARM: a vCPU", 0.03238, "hour", FARGATE, COPY)
FARGATE_GIB = Price("Fargate, Linux on ARM: a GB of memory", 0.00356, "hour", FARGATE, COPY)
BALANCER = Price("Network Load Balancer", 0.0225, "hour", BALANCERS, COPY)
CAPACITY_UNIT = Price("Network Load Balancer: a capacity unit (NLCU)", 0.006, "hour", BALANCERS, COPY)
PROXY_VCPU = Price("RDS Proxy, provisioned database: a vCPU of it, 2 at least", 0.015, "hour", PROXY, COPY)
PROXY_ACU = Price("RDS Proxy, Aurora Serverless v2: an ACU of it, 8 at least", 0.015, "hour", PROXY, KNOWN)
DATA_API = Price("RDS Data API: the first thousand million requests", 0.35, "million", AURORA, COPY)
DATA_API_BEYOND = Price("RDS Data API: those beyond", 0.20, "million", AURORA, KNOWN)
BETWEEN_ZONES = Price("Data between zones, charged at both ends", 0.02, "GB", TRANSFER, COPY)
SECRET = Price("Secrets Manager: a secret", 0.40, "month", SECRETS, KNOWN)
HOSTED_ZONE = Price("Route 53: a private hosted zone", 0.50, "month", ROUTE_53, COPY)
DNS_QUERIES = Price("Route 53: DNS queries", 0.40, "million", ROUTE_53, COPY)
METRIC = Price("CloudWatch: a metric", 0.30, "month", CLOUDWATCH, KNOWN)
LOG = Price("CloudWatch: logs, taken in", 0.50, "GB", CLOUDWATCH, KNOWN)
INTERFACE_ENDPOINT = Price("An interface endpoint in one zone", 0.01, "hour", PRIVATELINK, KNOWN)

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
