"""Makes each pool of a new PgBouncer log in once, before its first client comes.

A pool that has never logged in begins a login for its first client even while it is paused, closes it again, counts it
as failed and waits for server_login_retry: that client would wait for most of a second. So the login is proven by one
of our own, and then PgBouncer's first one is made by a question of ours. Then the pool sleeps: a proxy that nobody
uses holds no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

import psycopg

from emberpool_proxy.agent.engines import Engine, Engines
from emberpool_proxy.credentials.probe import Verdict
from emberpool_proxy.pgbouncer.admin import AdminConsole

FIRST_LOGIN_SECONDS = 2.0  # readiness does not wait for a database that is away for longer

Prove = Callable[[str], Awaitable[Verdict]]


async def log_in_first(engines: Engines, engine: Engine, entries: Iterable[str], prove: Prove) -> None:
    """Do it for those of `entries` that never had a client; what fails is left to the first client."""
    console = engine.console
    if console is None:
        return
    with contextlib.suppress(psycopg.Error, TimeoutError):
        async with asyncio.timeout(FIRST_LOGIN_SECONDS):
            fresh = sorted(set(entries) - await _known(console))
            await asyncio.gather(*(_log_in(engines, engine, entry, prove) for entry in fresh))


async def _known(console: AdminConsole) -> set[str]:
    return {pool.database for pool in await console.show_pools()}


async def _log_in(engines: Engines, engine: Engine, entry: str, prove: Prove) -> None:
    if await prove(entry) is Verdict.ACCEPTED:
        async with await engines.connect_to_pool(engine, entry) as connection:
            await connection.execute("select 1")
        if engine.console:
            await engine.console.pause(entry)  # the login gate opens it for the first client
