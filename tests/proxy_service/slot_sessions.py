"""Sessions of slots for tests: each as one task of a fleet has it, over a real connection to PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.slot_locks import SlotLocks
from emberpool_proxy.agent.slots import Slots
from emberpool_proxy.settings import ProxySettings

from .conftest import BOUND_SECONDS, DATABASE, DATABASE_PASSWORD, DATABASE_USER

Found = TypeVar("Found")
Open = Callable[..., Awaitable[Slots]]
# With these a budget of 30 has 30 - 4 x (2 + 2) = 14 slots.
TERMS = {"max_server_connections": 30, "most_tasks_alive": 4, "floor_connections": 2, "reserved_connections": 3}
SLOTS = 14


def fleet_settings(database: EmbeddedPostgres, budget: str, **changes: Any) -> ProxySettings:
    """Return the settings of a task of the fleet `budget`."""
    return ProxySettings(
        **{
            "database_host": database.host,
            "database_port": database.port,
            "database_name": DATABASE,
            "database_user": DATABASE_USER,
            "database_password": DATABASE_PASSWORD,
            "client_user": "function",
            "client_password": "client-password-of-43-characters-or-more-0123456789",
            "server_tls_mode": "disable",
            "budget_name": budget,
            **TERMS,
            **changes,
        }
    )


def slots_of(settings: ProxySettings, task: str = "task", deadline_seconds: float = BOUND_SECONDS) -> Slots:
    """Return the slots of a task, not open yet."""
    return Slots(
        settings,
        task,
        lambda: (settings.database_user, settings.database_password),
        lambda: frozenset({settings.database_user}),
        deadline_seconds,
    )


@asynccontextmanager
async def sessions(database: EmbeddedPostgres, budget: str) -> AsyncIterator[Open]:
    """Open sessions of tasks of a fleet, with changed settings; close them in the end."""
    made: list[Slots] = []

    async def opened(task: str = "task", deadline_seconds: float = BOUND_SECONDS, **changes: object) -> Slots:
        slots = slots_of(fleet_settings(database, budget, **changes), task, deadline_seconds)
        made.append(slots)
        await slots.open()
        return slots

    try:
        yield opened
    finally:
        for slots in made:
            await slots.close()


def locks_of(database: EmbeddedPostgres, budget: str, process_id: int | None = None) -> list[tuple[int, int]]:
    """Return who holds which slots, as the superuser sees it: pairs of backend and number, by number."""
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as admin:
        return admin.execute(
            "select pid, objid::int8 from pg_locks where locktype = 'advisory' and classid = %s and objsubid = 2 "
            "and (%s::int is null or pid = %s) order by objid",
            (SlotLocks.of(budget).slots, process_id, process_id),
        ).fetchall()


async def eventually(failure: str, ask: Callable[[], Awaitable[Found]], within_seconds: float = BOUND_SECONDS) -> Found:
    """Return what `ask` answers once that is true; `failure` is the sentence of the failure."""
    until = time.monotonic() + within_seconds
    while not (found := await ask()):
        assert time.monotonic() < until, f"{failure} (within {within_seconds:g} s)"
        await asyncio.sleep(0.01)
    return found


def terminate(database: EmbeddedPostgres, process_id: int) -> None:
    """End a backend, as an operator does."""
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(%s)", (process_id,))
