"""How much is asked of a database, from the number of execution environments: the model that all ways are billed by.

Every figure that is an assumption is a field or a constant here, with where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.cost.prices import SECONDS_A_MONTH

VCPU_STEPS = (2, 4, 8, 16, 32, 48, 64, 96)  # of database instances
ACUS_OF_A_VCPU = 4.0  # AWS's rule of thumb for moving a provisioned Aurora to Serverless v2
# PgBouncer's CPU with TLS on both sides: measured, 36 us a round trip; the layer's transaction has three of them.
PROXY_CPU_SECONDS = 3 * 36e-6
SLOWER_VCPU = 1.5  # a Fargate vCPU may be a thread of a core: what the measured core did takes so much longer
BUSY_SHARE = 0.6  # the CPU at which the service adds tasks (SCALE_AT_CPU_PERCENT of the constructs)


@dataclass(frozen=True)
class Workload:
    """What the functions ask for.

    `environments` are alive at the busiest time. Each has `invocations_per_second` in the mean of the whole month,
    nights included, and `peak_factor` times as many at the busiest. An invocation is one transaction with one statement
    of `kilobytes` in both directions together. An environment lives for `environment_hours` and then connects anew.
    """

    environments: int
    invocations_per_second: float
    peak_factor: float = 4.0
    kilobytes: float = 2.0
    environment_hours: float = 1.0
    database_tps_per_vcpu: float = 1000.0  # small transactions of an indexed database at a healthy load

    def __post_init__(self) -> None:
        for name, value in (
            ("environments", self.environments),
            ("invocations_per_second", self.invocations_per_second),
            ("kilobytes", self.kilobytes),
            ("environment_hours", self.environment_hours),
            ("database_tps_per_vcpu", self.database_tps_per_vcpu),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value:g}")
        if self.peak_factor < 1:
            raise ValueError(f"peak_factor must be at least 1, got {self.peak_factor:g}")

    @property
    def mean_tps(self) -> float:
        """Transactions a second in the mean of the month."""
        return self.environments * self.invocations_per_second

    @property
    def peak_tps(self) -> float:
        """Transactions a second at the busiest time."""
        return self.mean_tps * self.peak_factor

    @property
    def invocations_a_month(self) -> float:
        return self.mean_tps * SECONDS_A_MONTH

    @property
    def gigabytes_a_month(self) -> float:
        return self.invocations_a_month * self.kilobytes / 1e6

    @property
    def connections_a_month(self) -> float:
        """How often an environment connects, if as many as at the busiest time were alive all month."""
        return self.environments * SECONDS_A_MONTH / 3600 / self.environment_hours

    @property
    def database_vcpus(self) -> int:
        """The smallest provisioned database that the busiest time fits into; the largest when none does."""
        needed = self.peak_tps / self.database_tps_per_vcpu
        return next((step for step in VCPU_STEPS if step >= needed), VCPU_STEPS[-1])

    @property
    def mean_acus(self) -> float:
        """What Aurora Serverless v2 has in the mean of the month."""
        return max(0.5, self.mean_tps / self.database_tps_per_vcpu * ACUS_OF_A_VCPU)


@dataclass(frozen=True)
class TaskSize:
    """A task of the proxy: the constructs' defaults."""

    vcpus: float = 0.5
    gib: float = 1.0
    most_clients: int = 8000  # the setting max_client_connections; 56 KB each with TLS
    least_tasks: int = 2

    def tasks(self, tps: float, clients: int) -> int:
        """Return how many tasks run for so many transactions a second and connected clients."""
        by_cpu = tps * PROXY_CPU_SECONDS * SLOWER_VCPU / (self.vcpus * BUSY_SHARE)
        by_clients = clients / (self.most_clients * BUSY_SHARE)
        return max(self.least_tasks, math.ceil(by_cpu), math.ceil(by_clients))


# A function that comes in bursts, and one that works all day.
DEFAULT_ENVIRONMENTS, DEFAULT_RATES = (100, 1_000, 10_000), (0.05, 0.5)
DEFAULT_CASES = tuple(
    tuple(Workload(environments, rate) for environments in DEFAULT_ENVIRONMENTS) for rate in DEFAULT_RATES
)
