"""`/healthz` (is it able to serve) and `/readyz` (should it get new connections), with the reasons in the body."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from emberpool_proxy.errors import PortTaken
from emberpool_proxy.settings import ProxySettings, variable

HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"


@dataclass
class Health:
    """What the agent knows of its PgBouncer. Written by the supervisor only."""

    is_answering: bool = False
    is_draining: bool = False
    restarts: int = 0
    client_connections: int = 0
    clients_waiting: int = 0

    def reason_not_ready(self) -> str | None:
        """Return why no new connection should come here, or None."""
        if self.is_draining:
            return "draining"
        return None if self.is_answering else "pgbouncer does not answer"


@asynccontextmanager
async def serve_health(settings: ProxySettings, health: Health) -> AsyncIterator[None]:
    """Answer health checks while the context is open.

    Raises PortTaken when another program listens on the port.
    """
    app = web.Application()
    app.router.add_get(
        HEALTH_PATH, lambda _: _answer(health, None if health.is_answering else "pgbouncer does not answer")
    )
    app.router.add_get(READY_PATH, lambda _: _answer(health, health.reason_not_ready()))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.listen_host, settings.health_port).start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            raise PortTaken(
                f"cannot listen on {settings.listen_host}:{settings.health_port} for health checks: "
                f"{error.strerror}; end the program that uses it or set {variable('health_port')}"
            ) from error
        yield
    finally:
        await runner.cleanup()


async def _answer(health: Health, reason: str | None) -> web.Response:
    body = {
        "status": "ok" if reason is None else "unavailable",
        "reason": reason,
        "pgbouncer_restarts": health.restarts,
        "client_connections": health.client_connections,
        "clients_waiting": health.clients_waiting,
    }
    return web.json_response(body, status=200 if reason is None else 503)
