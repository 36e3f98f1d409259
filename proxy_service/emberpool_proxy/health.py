"""What the agent knows of its pool, and the HTTP endpoint that tells it.

`/healthz`: is it able to serve (if not, the task is to be replaced). `/readyz`: should it get new connections.
`/metrics` for Prometheus, `/status` and `/fleet` for the commands of these names. Nothing here asks PgBouncer: every
answer is what the last tick saw, so that no caller can make the agent work.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.pgbouncer.installed import InstalledPgbouncer
from emberpool_proxy.telemetry.readings import Reading

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"
STATUS_PATH = "/status"
FLEET_PATH = "/fleet"
# What /fleet shows of /status: the view of the whole fleet asks every task for it, again and again.
FLEET_PARTS = ("task", "ready", "draining", "clients", "budget", "fleet")
NOT_ANSWERING = "pgbouncer does not answer"
# A stalled caller must not hold up the end of the agent.
SHUTDOWN_SECONDS = 1.0
# An answer takes milliseconds; whoever keeps a connection for longer opens another one the next time.
CONNECTION_SECONDS = 15.0

DatabaseState = Literal["unknown", "up", "away", "paused"]


@dataclass
class Health:
    """What the agent's parts know, each writing its own: the watch, the drain, the database's watch, the budget.

    A database that is away makes the proxy neither unhealthy nor unready: clients wait in line here, and another task
    would not have the database either.
    """

    is_answering: bool = False
    is_working: bool = False  # it answers, or has too much to do for that: no reason to end this task
    is_draining: bool = False
    restarts: int = 0
    agent_restarts: int = 0
    client_connections: int = 0
    clients_waiting: int = 0
    database: DatabaseState = "unknown"
    budget: BudgetStatus | None = None  # None until the first step of the loop
    pgbouncer: InstalledPgbouncer | None = None  # None until one told its version
    readings: dict[int, Reading] = field(default_factory=dict)
    _not_ready: dict[str, str] = field(default_factory=dict)

    def take(self, readings: Iterable[Reading]) -> None:
        """Put the readings of one tick, one of each process that answered, in the place of the last ones."""
        self.readings = {reading.index: reading for reading in readings}
        self.client_connections = sum(reading.client_connections for reading in self.readings.values())
        self.clients_waiting = sum(reading.clients_waiting for reading in self.readings.values())

    def set_not_ready(self, name: str, reason: str | None) -> None:
        """Say why no new connection should come here, or (None) that `name` has no objection any more."""
        if reason is None:
            self._not_ready.pop(name, None)
        else:
            self._not_ready[name] = reason

    def reason_not_healthy(self) -> str | None:
        """Return why this task cannot serve, or None."""
        return None if self.is_answering or self.is_working else NOT_ANSWERING

    def warnings(self) -> list[str]:
        """Return what somebody should do about this task although it serves."""
        return [self.pgbouncer.warning] if self.pgbouncer and self.pgbouncer.warning else []

    def reason_not_ready(self) -> str | None:
        """Return why no new connection should come here, or None."""
        reasons = ["draining"] if self.is_draining else []
        if not self.is_answering:
            reasons.append(NOT_ANSWERING)
        return "; ".join([*reasons, *self._not_ready.values()]) or None


@asynccontextmanager
async def serve_health(
    sock: socket.socket,
    health: Health,
    render_metrics: Callable[[], tuple[bytes, str]] | None = None,
    describe: Callable[[], dict[str, Any]] | None = None,
    routes: Iterable[web.RouteDef] = (),
) -> AsyncIterator[None]:
    """Answer on `sock`, which listens already, while the context is open.

    `render_metrics` returns /metrics and its content type, `describe` what /status shows and /fleet a part of; `routes`
    are others' own.
    """
    app = web.Application()
    app.router.add_get(HEALTH_PATH, lambda _: _answer(health, health.reason_not_healthy()))
    app.router.add_get(READY_PATH, lambda _: _answer(health, health.reason_not_ready()))
    if render_metrics:
        app.router.add_get(METRICS_PATH, lambda _: _metrics(render_metrics))
    if describe:
        app.router.add_get(STATUS_PATH, lambda _: _status(describe))
        app.router.add_get(FLEET_PATH, lambda _: _fleet(describe))
    app.router.add_routes(routes)
    # The listening socket is the supervisor's: closing ours only stops our listening to it.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    closing_old = asyncio.create_task(_close_old_connections(runner))
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        closing_old.cancel()
        await runner.cleanup()


async def _close_old_connections(runner: web.AppRunner) -> None:
    """Close what has been open for too long: aiohttp waits without end for the rest of a request."""
    seen: set[object] = set()
    while runner.server:
        await asyncio.sleep(CONNECTION_SECONDS)
        for connection in runner.server.connections:
            if connection in seen:
                connection.force_close()
        seen = set(runner.server.connections)


async def _answer(health: Health, reason: str | None) -> web.Response:
    body = {
        "status": "ok" if reason is None else "unavailable",
        "reason": reason,
        "pgbouncer_restarts": health.restarts,
        "client_connections": health.client_connections,
        "clients_waiting": health.clients_waiting,
        "warnings": health.warnings(),
    }
    return web.json_response(body, status=200 if reason is None else 503)


async def _metrics(render: Callable[[], tuple[bytes, str]]) -> web.Response:
    body, content_type = render()
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _status(describe: Callable[[], dict[str, Any]]) -> web.Response:
    return web.json_response(describe())


async def _fleet(describe: Callable[[], dict[str, Any]]) -> web.Response:
    document = describe()
    return web.json_response({name: document[name] for name in FLEET_PARTS if name in document})
