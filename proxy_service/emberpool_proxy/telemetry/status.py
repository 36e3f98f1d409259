"""What `/status` shows: pools, engines, budget, peers, the database's state, how old the credentials are. No secret.

Owns the document's shape; how it is shown to people is status_view's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from emberpool_proxy.health import Health
from emberpool_proxy.pgbouncer.rows import MICROSECONDS, PoolRow, StatsRow
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.readings import Reading
from emberpool_proxy.telemetry.samples import current_budget

Describe = Callable[[], Any]
MILLISECONDS = 1000


class Status:
    """Makes the document of `health` and of the parts that add themselves."""

    def __init__(self, settings: ProxySettings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._parts: dict[str, Describe] = {}

    def add(self, name: str, describe: Describe) -> None:
        """Show what `describe` returns, as JSON, under `name`: names, counts, times and ages, never a secret."""
        self._parts[name] = describe

    def document(self) -> dict[str, Any]:
        """Return the whole document as of the last tick."""
        health, settings = self._health, self._settings
        reason = health.reason_not_ready()
        return {
            "task": socket.gethostname(),
            "ready": reason is None,
            "reason": reason,
            "draining": health.is_draining,
            "database": {
                "name": settings.database_name,
                "host": settings.database_host,
                "port": settings.database_port,
                "state": health.database,
                # Nobody works: the pools hold no connection, and wait for a login of ours before they take one.
                "asleep": bool(health.readings) and all(reading.is_paused for reading in health.readings.values()),
            },
            "limits": {
                "max_server_connections": settings.max_server_connections,
                "max_client_connections": settings.max_client_connections,
            },
            "clients": {"connected": health.client_connections, "waiting": health.clients_waiting},
            "budget": current_budget(settings, health).document(),
            "pgbouncer": health.pgbouncer.document() if health.pgbouncer else None,
            "restarts": {"pgbouncer": health.restarts, "agent": health.agent_restarts},
            "processes": [_process(reading) for reading in health.readings.values()],
            **{name: describe() for name, describe in self._parts.items()},
        }


def _process(reading: Reading) -> dict[str, Any]:
    return {
        "process": reading.index,
        "clients_logging_in": reading.clients_logging_in,
        "pools": [_pool(pool) for pool in reading.pools],
        "databases": [_totals(row) for row in reading.stats],
    }


def _pool(pool: PoolRow) -> dict[str, Any]:
    active = min(pool.sv_active, pool.cl_active)
    return {
        "database": pool.database,
        "user": pool.user,
        "clients": {"active": active, "idle": pool.cl_active - active, "waiting": pool.cl_waiting},
        "servers": {
            "active": pool.sv_active,
            "idle": pool.sv_idle + pool.sv_used + pool.sv_tested,
            "login": pool.sv_login,
        },
        "longest_wait_seconds": round(pool.max_wait_seconds, 3),
    }


def _totals(row: StatsRow) -> dict[str, Any]:
    return {
        "database": row.database,
        "transactions": row.total_xact_count,
        "queries": row.total_query_count,
        "received_bytes": row.total_received,
        "sent_bytes": row.total_sent,
        "transactions_per_second": row.avg_xact_count,
        "average_transaction_ms": row.avg_xact_time * MILLISECONDS / MICROSECONDS,
        "average_query_ms": row.avg_query_time * MILLISECONDS / MICROSECONDS,
        "average_wait_ms": row.avg_wait_time * MILLISECONDS / MICROSECONDS,
    }
