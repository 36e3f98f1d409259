"""A bare PgBouncer with our health endpoint in front of it, in the test's own process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from emberpool_proxy.health import Health, serve_health
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.composed import Telemetry
from emberpool_proxy.telemetry.readings import read

from .bare_pgbouncer import CLIENT, CLIENT_PASSWORD, DATABASE, ROLE, ROLE_PASSWORD, BarePgbouncer


def some_settings(**changes: object) -> ProxySettings:
    given = {
        "database_host": "127.0.0.1",
        "database_name": DATABASE,
        "database_user": ROLE,
        "database_password": ROLE_PASSWORD,
        "client_user": CLIENT,
        "client_password": CLIENT_PASSWORD,
        "max_server_connections": 3,
        **changes,
    }
    return ProxySettings(**given)


@dataclass
class Observed:
    """What an agent has of one PgBouncer: its health, its telemetry, and the endpoint at `url`."""

    settings: ProxySettings
    health: Health
    telemetry: Telemetry
    url: str
    session: aiohttp.ClientSession = field(repr=False)

    async def tick(self, bare: BarePgbouncer, console: AdminConsole | None = None) -> None:
        """Do what the agent does each tick."""
        if console:
            self.health.take([await read(0, console)])
        else:
            async with await bare.console() as opened:
                self.health.take([await read(0, opened)])

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.text()


@asynccontextmanager
async def observed(**changes: object) -> AsyncIterator[Observed]:
    settings, health = some_settings(**changes), Health(is_answering=True)
    telemetry = Telemetry(settings, health)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with (
            serve_health(listening, health, telemetry.page.render, telemetry.status.document),
            aiohttp.ClientSession() as session,
        ):
            yield Observed(settings, health, telemetry, url, session)
