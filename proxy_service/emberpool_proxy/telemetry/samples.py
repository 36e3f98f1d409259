"""The values of all metrics at one moment, from what the agent knows. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator

from emberpool_proxy import metrics
from emberpool_proxy.health import Health
from emberpool_proxy.metrics import Counts, Labels
from emberpool_proxy.pgbouncer.rows import MICROSECONDS
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.readings import Reading

Sample = tuple[str, Labels, float]  # metric, its labels' values, value


class Samples:
    """Makes samples of `health` and `counts`; each call of current() is a new look."""

    def __init__(self, settings: ProxySettings, health: Health, counts: Counts) -> None:
        self._settings = settings
        self._health = health
        self._counts = counts

    def current(self) -> Iterator[Sample]:
        """Yield every value that is known now; metrics without a value are left out."""
        yield from self._of_the_task()
        for reading in self._health.readings.values():
            yield from _of_a_process(reading)
        for (name, labels), value in self._counts.values().items():
            yield name, labels, value

    def _of_the_task(self) -> Iterator[Sample]:
        health, settings = self._health, self._settings
        yield metrics.HEALTHY, (), float(health.reason_not_healthy() is None)
        yield metrics.READY, (), float(health.reason_not_ready() is None)
        yield metrics.DRAINING, (), float(health.is_draining)
        yield metrics.PGBOUNCER_RESTARTS, (), health.restarts
        yield metrics.AGENT_RESTARTS, (), health.agent_restarts
        yield metrics.MAX_SERVER_CONNECTIONS, (), settings.max_server_connections
        yield metrics.MAX_CLIENT_CONNECTIONS, (), settings.max_client_connections
        yield metrics.DATABASE_PAUSED, (), float(health.database == "paused")
        if health.database != "unknown":
            yield metrics.DATABASE_UP, (), float(health.database == "up")


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
