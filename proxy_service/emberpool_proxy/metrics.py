"""The proxy's metrics: every name, unit and meaning, and the counts that the agent keeps itself.

Owns the one table of names: changing one is a breaking change. How they are rendered is prometheus' and emf's, what
the values are is samples'. Standard library only: `emberpool_cdk` may read the names for alarms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emberpool_proxy.pgbouncer.log_lines import (
    ClientGaveUpWaiting,
    ClientLoginFailed,
    Event,
    ServerConnectionLost,
    ServerLoginFailed,
    ServerUnreachable,
)

Kind = Literal["gauge", "counter"]
Unit = Literal["", "seconds", "bytes"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it. The name carries the unit; a counter's `_total` is part of it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: Unit = ""


CLIENT_CONNECTIONS = "emberpool_client_connections"
SERVER_CONNECTIONS = "emberpool_server_connections"
LONGEST_WAIT = "emberpool_longest_wait_seconds"
TRANSACTIONS = "emberpool_transactions_total"
QUERIES = "emberpool_queries_total"
BYTES_FROM_CLIENTS = "emberpool_received_bytes_total"
BYTES_TO_CLIENTS = "emberpool_sent_bytes_total"
TRANSACTION_SECONDS = "emberpool_transaction_seconds_total"
QUERY_SECONDS = "emberpool_query_seconds_total"
WAIT_SECONDS = "emberpool_wait_seconds_total"
AVERAGE_TRANSACTION = "emberpool_average_transaction_seconds"
AVERAGE_QUERY = "emberpool_average_query_seconds"
AVERAGE_WAIT = "emberpool_average_wait_seconds"
PGBOUNCER_RESTARTS = "emberpool_pgbouncer_restarts_total"
PGBOUNCER_OUTDATED = "emberpool_pgbouncer_outdated"
AGENT_RESTARTS = "emberpool_agent_restarts_total"
CLIENT_LOGIN_FAILURES = "emberpool_client_login_failures_total"
SERVER_LOGIN_FAILURES = "emberpool_server_login_failures_total"
SERVER_UNREACHABLE = "emberpool_server_unreachable_total"
SERVER_CONNECTIONS_LOST = "emberpool_server_connections_lost_total"
WAITED_IN_VAIN = "emberpool_waited_in_vain_total"
CREDENTIALS_RENEWALS = "emberpool_credentials_renewals_total"
CREDENTIALS_AGE = "emberpool_credentials_age_seconds"
CERTIFICATE_SECONDS_LEFT = "emberpool_certificate_seconds_left"
PEERS = "emberpool_peers"
HEALTHY = "emberpool_healthy"
READY = "emberpool_ready"
DRAINING = "emberpool_draining"
MAX_SERVER_CONNECTIONS = "emberpool_max_server_connections"
MAX_CLIENT_CONNECTIONS = "emberpool_max_client_connections"
DATABASE_UP = "emberpool_database_up"
DATABASE_PAUSED = "emberpool_database_paused"
BUDGET_CONNECTIONS = "emberpool_budget_connections"
BUDGET_FLOOR = "emberpool_budget_floor"
BUDGET_LIMIT = "emberpool_budget_limit"
BUDGET_SLOTS_HELD = "emberpool_budget_slots_held"
BUDGET_MISSING = "emberpool_budget_missing"
BUDGET_CONNECTION_MISSING = "emberpool_budget_control_connection_missing"
BUDGET_SLOTS_PROMISED = "emberpool_budget_slots_promised"
BUDGET_SLOTS = "emberpool_budget_slots"
BUDGET_SLOTS_FREE = "emberpool_budget_slots_free"
BUDGET_TASKS = "emberpool_budget_tasks"
BUDGET_FLEET_CONNECTIONS = "emberpool_budget_fleet_server_connections"
BUDGET_EXCESS = "emberpool_budget_excess_connections"
BUDGET_SHORT_BY = "emberpool_budget_connections_short"
BUDGET_CLAIM_CONFLICT = "emberpool_budget_claim_conflict"
BUDGET_SLOTS_TAKEN = "emberpool_budget_slots_taken_total"
BUDGET_SLOTS_GIVEN = "emberpool_budget_slots_given_total"
BUDGET_CONNECTIONS_LOST = "emberpool_budget_control_connections_lost_total"
DATA_REQUESTS = "emberpool_data_requests_total"
DATA_ERRORS = "emberpool_data_errors_total"
DATA_SECONDS = "emberpool_data_request_seconds_total"
DATA_RUNNING = "emberpool_data_requests_running"
DATA_TRANSACTIONS = "emberpool_data_transactions"

PROCESS = ("process",)
PROCESS_AND_DATABASE = ("process", "database")

METRICS: tuple[Metric, ...] = (
    Metric(
        CLIENT_CONNECTIONS,
        "gauge",
        "Client connections: active (have a server connection), idle, waiting (for one), login.",
        ("process", "state"),
    ),
    Metric(
        SERVER_CONNECTIONS,
        "gauge",
        "Connections to the database: active, idle (ready or about to be tested), login (being opened), cancel.",
        ("process", "state"),
    ),
    Metric(LONGEST_WAIT, "gauge", "How long the client at the head of the line has waited.", PROCESS, "seconds"),
    Metric(TRANSACTIONS, "counter", "Transactions that ended.", PROCESS_AND_DATABASE),
    Metric(QUERIES, "counter", "Queries that ended.", PROCESS_AND_DATABASE),
    Metric(BYTES_FROM_CLIENTS, "counter", "Bytes from clients.", PROCESS_AND_DATABASE, "bytes"),
    Metric(BYTES_TO_CLIENTS, "counter", "Bytes to clients.", PROCESS_AND_DATABASE, "bytes"),
    Metric(TRANSACTION_SECONDS, "counter", "Time in transactions.", PROCESS_AND_DATABASE, "seconds"),
    Metric(QUERY_SECONDS, "counter", "Time in queries.", PROCESS_AND_DATABASE, "seconds"),
    Metric(
        WAIT_SECONDS,
        "counter",
        "Time that clients waited for a server connection.",
        PROCESS_AND_DATABASE,
        "seconds",
    ),
    Metric(AVERAGE_TRANSACTION, "gauge", "Average transaction in the last period.", PROCESS_AND_DATABASE, "seconds"),
    Metric(AVERAGE_QUERY, "gauge", "Average query in the last period.", PROCESS_AND_DATABASE, "seconds"),
    Metric(AVERAGE_WAIT, "gauge", "Average wait in the last period.", PROCESS_AND_DATABASE, "seconds"),
    Metric(PGBOUNCER_RESTARTS, "counter", "How often a PgBouncer was started again."),
    Metric(PGBOUNCER_OUTDATED, "gauge", "1 when PgBouncer lacks a security fix that this release of emberpool knows."),
    Metric(AGENT_RESTARTS, "counter", "How often the agent was started again."),
    Metric(
        CLIENT_LOGIN_FAILURES,
        "counter",
        "Clients refused, by cause: credentials, not_allowed, limit, tls, protocol.",
        ("cause",),
    ),
    Metric(SERVER_LOGIN_FAILURES, "counter", "Logins that the database refused."),
    Metric(SERVER_UNREACHABLE, "counter", "Attempts to reach the database that failed: name, port or TLS."),
    Metric(SERVER_CONNECTIONS_LOST, "counter", "Log lines that tell of a lost connection to the database."),
    Metric(WAITED_IN_VAIN, "counter", "Clients that got no server connection in time and were told so."),
    Metric(CREDENTIALS_RENEWALS, "counter", "Renewals of credentials, by result: ok, failed.", ("result",)),
    Metric(CREDENTIALS_AGE, "gauge", "Time since the credentials in use were read, by whose.", ("of",), "seconds"),
    Metric(CERTIFICATE_SECONDS_LEFT, "gauge", "Time until the certificate for clients expires."),
    Metric(PEERS, "gauge", "PgBouncer processes of the fleet that a cancel request can be passed on to."),
    Metric(HEALTHY, "gauge", "1 when /healthz answers 200."),
    Metric(READY, "gauge", "1 when /readyz answers 200."),
    Metric(DRAINING, "gauge", "1 when the task is being stopped."),
    Metric(MAX_SERVER_CONNECTIONS, "gauge", "Server connections that the task may have now: its floor and its slots."),
    Metric(MAX_CLIENT_CONNECTIONS, "gauge", "How many clients may be connected."),
    Metric(DATABASE_UP, "gauge", "1 when the database answered last, 0 when it is away; absent while unknown."),
    Metric(DATABASE_PAUSED, "gauge", "1 when new work waits in line because the database is away."),
    # Those of the budget are there when tasks share one; what the database tells of it, while the task is in touch.
    Metric(BUDGET_CONNECTIONS, "gauge", "The budget that the tasks share."),
    Metric(BUDGET_FLOOR, "gauge", "Server connections that the task may have without a slot."),
    Metric(BUDGET_LIMIT, "gauge", "Server connections that the task's PgBouncers may open: the limits in force."),
    Metric(BUDGET_SLOTS_HELD, "gauge", "Slots that the task holds."),
    Metric(BUDGET_MISSING, "gauge", "Server connections that the task could use and does not have."),
    Metric(
        BUDGET_CONNECTION_MISSING,
        "gauge",
        "1 when the task wants its control connection and has none: it serves with its floor.",
    ),
    Metric(BUDGET_SLOTS_PROMISED, "gauge", "Slots that the settings promise to all tasks together."),
    Metric(BUDGET_SLOTS, "gauge", "Slots that there are for all tasks together now: as promised, or fewer."),
    Metric(BUDGET_SLOTS_FREE, "gauge", "Slots that no task holds."),
    Metric(BUDGET_TASKS, "gauge", "Tasks that have a control connection."),
    Metric(BUDGET_FLEET_CONNECTIONS, "gauge", "Server connections of all tasks, as the database counts them."),
    Metric(
        BUDGET_EXCESS, "gauge", "Server connections above what all tasks may have: of one that is gone, or others'."
    ),
    Metric(BUDGET_SHORT_BY, "gauge", "Connections that were promised and that the database has no room for."),
    Metric(BUDGET_CLAIM_CONFLICT, "gauge", "1 when another deployment of the budget's name promises fewer slots."),
    Metric(BUDGET_SLOTS_TAKEN, "counter", "Slots taken."),
    Metric(BUDGET_SLOTS_GIVEN, "counter", "Slots given back."),
    Metric(BUDGET_CONNECTIONS_LOST, "counter", "Control connections that were lost."),
    # Those of the data endpoint are there when the task has one.
    Metric(DATA_REQUESTS, "counter", "Requests that the data endpoint answered."),
    Metric(DATA_ERRORS, "counter", "Its answers that were errors, by the service's name of them.", ("kind",)),
    Metric(DATA_SECONDS, "counter", "Time that its requests took.", unit="seconds"),
    Metric(DATA_RUNNING, "gauge", "Requests that it works on."),
    Metric(DATA_TRANSACTIONS, "gauge", "Transactions that are open there."),
)
BY_NAME = {metric.name: metric for metric in METRICS}

How = Literal["sum", "max", "min", "increase", "average"]


@dataclass(frozen=True, slots=True)
class CloudWatchMetric:
    """One metric in CloudWatch: of which of ours, and how those of a task become one number a minute.

    `increase`: what a counter grew by. `average`: what the first counter grew by for each growth of the second.
    `statistic` makes the fleet's number of the tasks' numbers.
    """

    name: str
    unit: str
    how: How
    of: tuple[str, ...]
    statistic: Literal["Sum", "Maximum", "Minimum", "Average"]
    only: tuple[tuple[str, str], ...] = ()  # label and value
    factor: float = 1.0


SERVICE_DIMENSION = "Service"
CLOUDWATCH_METRICS: tuple[CloudWatchMetric, ...] = (
    CloudWatchMetric("ClientConnections", "Count", "sum", (CLIENT_CONNECTIONS,), "Sum"),
    CloudWatchMetric("ClientsActive", "Count", "sum", (CLIENT_CONNECTIONS,), "Sum", (("state", "active"),)),
    CloudWatchMetric("ClientsWaiting", "Count", "sum", (CLIENT_CONNECTIONS,), "Sum", (("state", "waiting"),)),
    CloudWatchMetric("LongestWait", "Seconds", "max", (LONGEST_WAIT,), "Maximum"),
    CloudWatchMetric("ServerConnections", "Count", "sum", (SERVER_CONNECTIONS,), "Sum"),
    CloudWatchMetric("MaxServerConnections", "Count", "sum", (MAX_SERVER_CONNECTIONS,), "Sum"),
    CloudWatchMetric("Transactions", "Count", "increase", (TRANSACTIONS,), "Sum"),
    CloudWatchMetric(
        "TransactionTime", "Milliseconds", "average", (TRANSACTION_SECONDS, TRANSACTIONS), "Average", factor=1000
    ),
    CloudWatchMetric("WaitTime", "Milliseconds", "average", (WAIT_SECONDS, TRANSACTIONS), "Average", factor=1000),
    CloudWatchMetric("WaitedInVain", "Count", "increase", (WAITED_IN_VAIN,), "Sum"),
    CloudWatchMetric("ClientLoginFailures", "Count", "increase", (CLIENT_LOGIN_FAILURES,), "Sum"),
    CloudWatchMetric("ServerLoginFailures", "Count", "increase", (SERVER_LOGIN_FAILURES,), "Sum"),
    CloudWatchMetric("PgbouncerRestarts", "Count", "increase", (PGBOUNCER_RESTARTS,), "Sum"),
    CloudWatchMetric("PgbouncerOutdated", "None", "max", (PGBOUNCER_OUTDATED,), "Maximum"),
    CloudWatchMetric("DatabaseUp", "None", "min", (DATABASE_UP,), "Minimum"),
    CloudWatchMetric("BudgetMissing", "Count", "sum", (BUDGET_MISSING,), "Sum"),
    CloudWatchMetric("BudgetSlotsFree", "Count", "sum", (BUDGET_SLOTS_FREE,), "Minimum"),
    CloudWatchMetric("BudgetConnectionsShort", "Count", "sum", (BUDGET_SHORT_BY,), "Maximum"),
    CloudWatchMetric("BudgetClaimConflict", "None", "sum", (BUDGET_CLAIM_CONFLICT,), "Maximum"),
    CloudWatchMetric("BudgetControlConnectionMissing", "None", "sum", (BUDGET_CONNECTION_MISSING,), "Maximum"),
    CloudWatchMetric("DataRequests", "Count", "increase", (DATA_REQUESTS,), "Sum"),
    CloudWatchMetric("DataErrors", "Count", "increase", (DATA_ERRORS,), "Sum"),
    CloudWatchMetric(
        "DataRequestTime", "Milliseconds", "average", (DATA_SECONDS, DATA_REQUESTS), "Average", factor=1000
    ),
    CloudWatchMetric("DataTransactions", "Count", "sum", (DATA_TRANSACTIONS,), "Sum"),
)

Labels = tuple[str, ...]  # the values of the metric's labels, in their order


class Counts:
    """What the agent counts itself: events of PgBouncer's log, renewals. Starts at 0 with the agent."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        for name in (SERVER_LOGIN_FAILURES, SERVER_UNREACHABLE, SERVER_CONNECTIONS_LOST, WAITED_IN_VAIN):
            self.add(name, by=0)
        for cause in ("credentials", "not_allowed", "limit", "tls", "protocol"):
            self.add(CLIENT_LOGIN_FAILURES, cause, by=0)
        for result in ("ok", "failed"):
            self.add(CREDENTIALS_RENEWALS, result, by=0)

    def add(self, name: str, *labels: str, by: float = 1) -> None:
        """Count one more (or `by` more) of a counter of METRICS."""
        key = _checked(name, labels, "counter")
        self._values[key] = self._values.get(key, 0) + by

    def set(self, name: str, value: float | None, *labels: str) -> None:
        """Set a gauge of METRICS that no reading tells; None takes it away."""
        key = _checked(name, labels, "gauge")
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value

    def values(self) -> dict[tuple[str, Labels], float]:
        """Return all values by metric and labels."""
        return dict(self._values)

    def count_event(self, _index: int, event: Event) -> None:
        """Count what a line of PgBouncer's log told."""
        match event:
            case ClientLoginFailed(cause=cause):
                self.add(CLIENT_LOGIN_FAILURES, cause)
            case ServerLoginFailed():
                self.add(SERVER_LOGIN_FAILURES)
            case ServerUnreachable():
                self.add(SERVER_UNREACHABLE)
            case ServerConnectionLost():
                self.add(SERVER_CONNECTIONS_LOST)
            case ClientGaveUpWaiting():
                self.add(WAITED_IN_VAIN)


def _checked(name: str, labels: Labels, kind: Kind) -> tuple[str, Labels]:
    metric = BY_NAME[name]
    if metric.kind != kind or len(metric.labels) != len(labels):
        raise ValueError(f"{name} is a {metric.kind} with the labels {metric.labels}, got a {kind} with {labels}")
    return name, labels
