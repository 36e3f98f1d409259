"""The pool's metrics in CloudWatch, as CDK objects: names, statistics and the dimension are the proxy's own."""

from __future__ import annotations

import difflib

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_elasticloadbalancingv2 as elbv2

from emberpool_proxy import metrics
from emberpool_proxy.settings import ProxySettings

NAMESPACE = ProxySettings.metrics_namespace
BY_NAME = {metric.name: metric for metric in metrics.CLOUDWATCH_METRICS}
# Each task writes once a minute: over a longer period the sum of a count of connections would be several times it.
PERIOD = Duration.minutes(1)


class PoolMetrics:
    """The `metric_…` methods of a pool. `metrics_service` is the pool's name among those of the account's region."""

    metrics_service: str
    has_metrics: bool
    target_group: elbv2.NetworkTargetGroup | None

    def metric(
        self, name: str, *, statistic: str | None = None, label: str | None = None, color: str | None = None
    ) -> cloudwatch.Metric:
        """Return the metric of that name (docs/proxy.md lists them) for the whole fleet, by the minute.

        The statistic is the one that makes the fleet's number of the tasks'. Raises ValueError for a name that the
        proxy does not write, and for a pool without metrics.
        """
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BY_NAME)}"
            raise ValueError(f"the proxy writes no metric {name}; {hint}")
        if not self.has_metrics:
            raise ValueError(f"the pool has metrics=False, so there is no {name}: take that away")
        return cloudwatch.Metric(
            namespace=NAMESPACE,
            metric_name=name,
            dimensions_map={metrics.SERVICE_DIMENSION: self.metrics_service},
            statistic=statistic or BY_NAME[name].statistic,
            period=PERIOD,
            label=label,
            color=color,
        )

    def metric_client_connections(self) -> cloudwatch.Metric:
        """Return how many clients are connected."""
        return self.metric("ClientConnections")

    def metric_clients_active(self) -> cloudwatch.Metric:
        """Return how many clients have a server connection."""
        return self.metric("ClientsActive")

    def metric_clients_waiting(self) -> cloudwatch.Metric:
        """Return how many clients wait for a server connection."""
        return self.metric("ClientsWaiting")

    def metric_longest_wait(self) -> cloudwatch.Metric:
        """Return how long the client at the head of the line has waited, in seconds."""
        return self.metric("LongestWait")

    def metric_wait_time(self) -> cloudwatch.Metric:
        """Return the average wait of a transaction, in milliseconds."""
        return self.metric("WaitTime")

    def metric_waited_in_vain(self) -> cloudwatch.Metric:
        """Return how many clients were told that the pool is busy."""
        return self.metric("WaitedInVain")

    def metric_server_connections(self) -> cloudwatch.Metric:
        """Return how many connections to the database there are."""
        return self.metric("ServerConnections")

    def metric_transactions(self) -> cloudwatch.Metric:
        """Return how many transactions ended in a minute."""
        return self.metric("Transactions")

    def metric_budget_slots_free(self) -> cloudwatch.Metric:
        """Return how many of the shared connections nobody holds; there is no value while nobody works."""
        return self.metric("BudgetSlotsFree")

    def metric_client_login_failures(self) -> cloudwatch.Metric:
        """Return how many clients were refused."""
        return self.metric("ClientLoginFailures")

    def metric_server_login_failures(self) -> cloudwatch.Metric:
        """Return how many of the pool's logins the database refused."""
        return self.metric("ServerLoginFailures")

    def metric_pgbouncer_outdated(self) -> cloudwatch.Metric:
        """Return 1 while a task's PgBouncer lacks a known security fix, else 0."""
        return self.metric("PgbouncerOutdated")

    def metric_healthy_tasks(self) -> cloudwatch.Metric:
        """Return how many tasks are ready, as the load balancer finds, in the zone with most of them.

        Without a load balancer: how many tasks wrote metrics.
        """
        if self.target_group is None:
            return self.metric("MaxServerConnections", statistic="SampleCount")
        # The load balancer counts by zone: the least of a zone is 0 when all tasks are in another.
        return self.target_group.metrics.healthy_host_count(statistic="Maximum", period=PERIOD)
