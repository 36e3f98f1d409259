"""What the dashboard of a pool shows: clients, server connections against the budget, logins, errors, functions.

A part of the proxy that begins to write metrics (emberpool_proxy.metrics.CLOUDWATCH_METRICS) gets a graph here: a test
in tests/agreement fails while one of them is on no graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import aws_cloudwatch as cloudwatch

from emberpool import metrics as layer_metrics
from emberpool_cdk.pool_metrics import PERIOD
from emberpool_cdk.pool_proxy import PoolProxy

HALF, FULL = 12, 24  # of the dashboard's columns
BY_TASK = ("ServerConnections", "MaxServerConnections", "ClientConnections", "ClientsWaiting", "LongestWait")


def dashboard_rows(pool: PoolProxy, alarms: Sequence[cloudwatch.Alarm], runbook: str) -> list[list[cloudwatch.IWidget]]:
    """Return the widgets, row by row. `runbook` is a link."""
    of_data: list[list[cloudwatch.IWidget]] = [[_data_requests(pool), _data_errors(pool)]]
    return [
        [
            cloudwatch.TextWidget(markdown=_introduction(pool, runbook), width=HALF, height=4),
            cloudwatch.AlarmStatusWidget(alarms=list(alarms), title="Alarms", width=HALF, height=4),
        ],
        [_graph("Clients", pool, "ClientConnections", "ClientsActive", "ClientsWaiting"), _waits(pool)],
        [_server_connections(pool), _sharing(pool)],
        [_by_task(pool)],
        [
            _graph("Logins that failed", pool, "ClientLoginFailures", "ServerLoginFailures"),
            _graph("Errors", pool, "WaitedInVain", "PgbouncerRestarts", "PgbouncerOutdated"),
        ],
        [_transactions(pool), _health(pool)],
        *(of_data if pool.has_data_endpoint else []),
        [_invocations(), _layer_errors()],
    ]


def _introduction(pool: PoolProxy, runbook: str) -> str:
    budget = pool.budget
    return (
        f"**{pool.node.path}**: {budget.min_tasks} to {budget.max_tasks} tasks share {budget.budget} of the database's "
        f"{budget.max_connections} connections. What each alarm means and what to do: {runbook}"
    )


def _graph(title: str, pool: PoolProxy, *names: str) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title=title, left=[pool.metric(name) for name in names], width=HALF, left_y_axis=_from_zero()
    )


def _data_requests(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title="Data endpoint: requests, open transactions, average time (ms)",
        left=[pool.metric("DataRequests"), pool.metric("DataTransactions")],
        right=[pool.metric("DataRequestTime")],
        left_y_axis=_from_zero(),
        width=HALF,
    )


def _data_errors(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return _graph("Data endpoint: answers that were errors", pool, "DataErrors")


def _waits(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title="Wait for a server connection: longest now (s), average (ms)",
        left=[pool.metric_longest_wait()],
        right=[pool.metric_wait_time()],
        left_y_axis=_from_zero(),
        left_annotations=[_line(pool.query_wait_seconds, "clients are told PoolBusy")],
        width=HALF,
    )


def _server_connections(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title="Server connections, and what the tasks may have now",
        left=[pool.metric_server_connections(), pool.metric("MaxServerConnections")],
        left_y_axis=_from_zero(),
        left_annotations=[_line(pool.budget.budget, "budget of the fleet")],
        width=HALF,
    )


def _sharing(pool: PoolProxy) -> cloudwatch.GraphWidget:
    names = ["BudgetSlotsFree", "BudgetMissing", "BudgetConnectionsShort", "BudgetControlConnectionMissing"]
    return _graph("Shared connections: free, and missing to the tasks", pool, *names, "BudgetClaimConflict")


def _by_task(pool: PoolProxy) -> cloudwatch.LogQueryWidget:
    # From the log: as a dimension, the task would make all metrics anew, and cost them, with each deployment.
    latest = ", ".join(f"latest({name}) as {name}_" for name in BY_TASK)
    return cloudwatch.LogQueryWidget(
        title="Latest of each task (reads the log each time: paid by the size of what it reads)",
        log_group_names=[pool.log_group.log_group_name],
        query_lines=[
            f"filter Service = '{pool.metrics_service}' and ispresent(ServerConnections)",
            f"stats {latest} by Task",
            "sort ServerConnections_ desc",
        ],
        view=cloudwatch.LogQueryVisualizationType.TABLE,
        width=FULL,
    )


def _transactions(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title="Transactions in a minute, and their average time (ms)",
        left=[pool.metric_transactions()],
        right=[pool.metric("TransactionTime")],
        left_y_axis=_from_zero(),
        width=HALF,
    )


def _health(pool: PoolProxy) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(
        title=("Healthy tasks of the zone with most of them" if pool.target_group else "Tasks that write metrics")
        + ", and whether the database answers",
        left=[pool.metric_healthy_tasks(), pool.metric("DatabaseUp")],
        left_y_axis=_from_zero(),
        width=HALF,
    )


def _invocations() -> cloudwatch.GraphWidget:
    return _layer_graph(
        "Invocations of all functions here", layer_metrics.COLD_INVOCATIONS, layer_metrics.WARM_INVOCATIONS
    )


def _layer_errors() -> cloudwatch.GraphWidget:
    return _layer_graph(
        "What their layer mended",
        layer_metrics.CONNECTIONS_REPLACED,
        layer_metrics.RETRIES,
        layer_metrics.DEADLINE_CANCELS,
    )


def _layer_graph(title: str, *shown: layer_metrics.Metric) -> cloudwatch.GraphWidget:
    # By a search: a function's name would make the pool's stack depend on the stacks that depend on it.
    return cloudwatch.GraphWidget(
        title=title, left=[_of_all_functions(metric) for metric in shown], left_y_axis=_from_zero(), width=HALF
    )


def _of_all_functions(metric: layer_metrics.Metric) -> cloudwatch.MathExpression:
    names = f'{{{layer_metrics.NAMESPACE},{layer_metrics.DIMENSION}}} MetricName="{metric.name}"'
    seconds = round(PERIOD.to_seconds())
    return cloudwatch.MathExpression(
        expression=f"SUM(SEARCH('{names}', 'Sum', {seconds}))", using_metrics={}, label=metric.name, period=PERIOD
    )


def _from_zero() -> cloudwatch.YAxisProps:
    return cloudwatch.YAxisProps(min=0)


def _line(value: float, label: str) -> cloudwatch.HorizontalAnnotation:
    return cloudwatch.HorizontalAnnotation(value=value, label=label)
