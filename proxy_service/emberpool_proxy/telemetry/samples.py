"""The values of all metrics at one moment, from what the agent knows. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator

from emberpool_proxy import metrics
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.health import Health
from emberpool_proxy.metrics import Counts, Labels
from emberpool_proxy.pgbouncer.config import DATA_COUNTS_FILE
from emberpool_proxy.pgbouncer.rows import MICROSECONDS
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.data_counts import read_counts
from emberpool_proxy.telemetry.readings import Reading

Sample = tuple[str, Labels, float]  # metric, its labels' values, value


def current_budget(settings: ProxySettings, health: Health) -> BudgetStatus:
    """Return how this task stands with the budget now."""
    return health.budget or BudgetStatus.before_the_first_step(settings, health.readings.values())


class Samples:
    """Makes samples of `health` and `counts`; each call of current() is a new look."""

    def __init__(self, settings: ProxySettings, health: Health, counts: Counts) -> None:
        self._settings = settings
        self._health = health
        self._counts = counts

    def current(self) -> Iterator[Sample]:
        """Yield every value that is known now; metrics without a value are left out."""
        yield from self._of_the_task()
        yield from _of_the_budget(current_budget(self._settings, self._health))
        for reading in self._health.readings.values():
            yield from _of_a_process(reading)
        for (name, labels), value in self._counts.values().items():
            yield name, labels, value
        if self._settings.data_port:
            yield from read_counts(self._settings.engine_path(0) / DATA_COUNTS_FILE)

    def _of_the_task(self) -> Iterator[Sample]:
        health, settings = self._health, self._settings
        yield metrics.HEALTHY, (), float(health.reason_not_healthy() is None)
        yield metrics.READY, (), float(health.reason_not_ready() is None)
        yield metrics.DRAINING, (), float(health.is_draining)
        yield metrics.PGBOUNCER_RESTARTS, (), health.restarts
        yield metrics.AGENT_RESTARTS, (), health.agent_restarts
        if health.pgbouncer:
            yield metrics.PGBOUNCER_OUTDATED, (), float(bool(health.pgbouncer.missing))
        yield metrics.MAX_CLIENT_CONNECTIONS, (), settings.max_client_connections
        yield metrics.DATABASE_PAUSED, (), float(health.database == "paused")
        if health.database != "unknown":
            yield metrics.DATABASE_UP, (), float(health.database == "up")


def _of_the_budget(budget: BudgetStatus) -> Iterator[Sample]:
    yield metrics.MAX_SERVER_CONNECTIONS, (), budget.granted
    if budget.state == "alone":
        return  # it shares nothing: there is nothing to see or to alarm
    yield metrics.BUDGET_CONNECTIONS, (), budget.budget
    yield metrics.BUDGET_FLOOR, (), budget.floor
    yield metrics.BUDGET_LIMIT, (), budget.limit
    yield metrics.BUDGET_SLOTS_HELD, (), budget.slots_held
    yield metrics.BUDGET_MISSING, (), budget.missing
    yield metrics.BUDGET_CONNECTION_MISSING, (), float(budget.state == "lost")
    yield metrics.BUDGET_SLOTS_PROMISED, (), budget.slots_promised
    yield metrics.BUDGET_SLOTS_TAKEN, (), budget.slots_taken
    yield metrics.BUDGET_SLOTS_GIVEN, (), budget.slots_given
    yield metrics.BUDGET_CONNECTIONS_LOST, (), budget.times_lost
    if budget.slots is not None:
        yield from _of_the_fleet(budget)


def _of_the_fleet(budget: BudgetStatus) -> Iterator[Sample]:
    for name, value in (
        (metrics.BUDGET_SLOTS, budget.slots),
        (metrics.BUDGET_SLOTS_FREE, budget.slots_free),
        (metrics.BUDGET_TASKS, budget.tasks),
        (metrics.BUDGET_FLEET_CONNECTIONS, budget.pool_connections),
        (metrics.BUDGET_EXCESS, budget.excess),
        (metrics.BUDGET_SHORT_BY, budget.short_by),
        (metrics.BUDGET_CLAIM_CONFLICT, float(budget.claim_conflict is not None)),
    ):
        if value is not None:
            yield name, (), value


def _of_a_process(reading: Reading) -> Iterator[Sample]:
    process = str(reading.index)
    for state, clients in (
        ("active", reading.clients_active),
        ("idle", reading.clients_idle),
        ("waiting", reading.clients_waiting),
        ("login", reading.clients_logging_in),
    ):
        yield metrics.CLIENT_CONNECTIONS, (process, state), clients
    pools = reading.pools
    for state, servers in (
        ("active", sum(pool.sv_active for pool in pools)),
        ("idle", sum(pool.sv_idle + pool.sv_used + pool.sv_tested for pool in pools)),
        ("login", sum(pool.sv_login for pool in pools)),
        ("cancel", sum(pool.sv_active_cancel + pool.sv_being_canceled for pool in pools)),
    ):
        yield metrics.SERVER_CONNECTIONS, (process, state), servers
    yield metrics.LONGEST_WAIT, (process,), reading.max_wait_seconds
    for row in reading.stats:
        for name, value in (
            (metrics.TRANSACTIONS, row.total_xact_count),
            (metrics.QUERIES, row.total_query_count),
            (metrics.BYTES_FROM_CLIENTS, row.total_received),
            (metrics.BYTES_TO_CLIENTS, row.total_sent),
            (metrics.TRANSACTION_SECONDS, row.total_xact_time / MICROSECONDS),
            (metrics.QUERY_SECONDS, row.total_query_time / MICROSECONDS),
            (metrics.WAIT_SECONDS, row.total_wait_time / MICROSECONDS),
            (metrics.AVERAGE_TRANSACTION, row.avg_xact_time / MICROSECONDS),
            (metrics.AVERAGE_QUERY, row.avg_query_time / MICROSECONDS),
            (metrics.AVERAGE_WAIT, row.avg_wait_time / MICROSECONDS),
        ):
            yield name, (process, row.database), value
