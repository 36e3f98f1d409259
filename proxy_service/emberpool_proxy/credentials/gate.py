"""Keeps PgBouncer from trying an unproven password on an empty pool: pauses such pools, proves the login, resumes.

Owns the pauses of single databases (PAUSE db). The pause of a whole process (PAUSE) is the database watch's: while
there is one the gates stand open behind it, and when the database cannot be asked they open, too: how to wait for a
database that is away is the watch's to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import psycopg

from emberpool_proxy.credentials.gate_state import REFRESH_SECONDS, Act, Gate, GateState, Look, step
from emberpool_proxy.credentials.probe import Verdict
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.rows import ADMIN_DATABASE, PoolRow

TICK_SECONDS = 1.0
WATCHFUL_SECONDS = 0.05  # a client that waits at a closed gate is seen this soon
CONSOLE_SECONDS = 3.0
PAUSE_SECONDS = 0.25  # a refresh must not make clients wait for somebody's long transaction
REFRESH_AGAIN_SECONDS = 30.0

ACTIVE = "active"  # SHOW STATE, of a process that is neither paused nor suspended
FOREVER: Mapping[str, str | None] = {"server_lifetime": "86400", "server_idle_timeout": "0"}

Prove = Callable[[str], Awaitable[Verdict]]
# Says what to SET so that a setting has this value (None: the ini's), and has RELOADs leave it so: see Rendering.
StandIn = Callable[[Any, Mapping[str, str | None]], Mapping[str, str]]


class Engine(Protocol):
    """One PgBouncer process."""

    @property
    def pid(self) -> int: ...  # noqa: D102

    @property
    def console(self) -> AdminConsole | None: ...  # noqa: D102


class LoginGate:
    """The gates of all pools of all processes. `prove(entry)` says whether the database accepts the entry's login.

    `patience_seconds` bounds how long clients wait at a gate that cannot be opened, before PgBouncer tells them why.
    A pool that ran nothing for `sleep_seconds` is closed: less than PgBouncer's server_idle_timeout, which empties it.
    """

    def __init__(
        self,
        engines: Callable[[], Iterable[Engine]],
        prove: Prove,
        stand_in: StandIn,
        patience_seconds: float,
        sleep_seconds: float,
        tick_seconds: float = TICK_SECONDS,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._engines = engines
        self._prove = prove
        self._stand_in = stand_in
        self._patience_seconds = patience_seconds
        self._tick_seconds = tick_seconds
        self._sleep_seconds = sleep_seconds
        self._refresh_seconds = refresh_seconds
        self._states: dict[tuple[int, str], GateState] = defaultdict(GateState)
        self._waiting_since: dict[tuple[int, str], float] = {}
        self._begun = asyncio.Event()  # a process has begun: its first client should not wait for the next tick
        self._refused: set[str] = set()  # entries whose login is being mended
        self._kept: set[int] = set()  # processes whose connections are kept, whatever their age

    async def hold(self, entries: frozenset[str]) -> None:
        """Keep the server connections that are logged in, whatever their age: while there is one, no client fails."""
        self._refused |= entries
        await self._keep_servers()

    async def release(self, entries: frozenset[str]) -> None:
        """Let server connections age again: the login works, or waiting is no use."""
        self._refused -= entries
        if self._refused:
            return
        await self._say(dict.fromkeys(FOREVER), [engine for engine in self._engines() if engine.pid in self._kept])
        self._kept.clear()

    async def _keep_servers(self) -> None:
        engines = list(self._engines())
        self._kept |= {engine.pid for engine in engines if engine.console}
        await self._say(FOREVER, engines)

    async def _say(self, values: Mapping[str, str | None], engines: Iterable[Engine]) -> None:
        for engine in engines:
            if engine.console is None:
                continue
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(CONSOLE_SECONDS):
                    for name, value in self._stand_in(engine, values).items():
                        await engine.console.set(name, value)

    async def close_first(self, engine: Engine) -> None:
        """Close the gates of a process that has just started, before the first client can make it log in."""
        with contextlib.suppress(psycopg.Error, TimeoutError):
            if engine.console:
                await self._look_at(engine.console, engine.pid)
        self._begun.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        next_tick = 0.0
        while True:
            is_tick = time.monotonic() >= next_tick
            if is_tick:
                next_tick = time.monotonic() + self._tick_seconds
                self._forget_processes_that_ended()
                if self._refused:
                    await self._keep_servers()  # a process that has begun meanwhile has not heard it
            for engine in self._engines():
                try:
                    if engine.console and (is_tick or self._refused):
                        await self._look_at(engine.console, engine.pid)
                    elif engine.console:
                        await self._wake_for_who_waits(engine.console, engine.pid)
                except (psycopg.Error, TimeoutError):
                    continue  # it ends, or hangs: others see to that
            is_closed = any(state.gate is Gate.CLOSED for state in self._states.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCHFUL_SECONDS if is_closed or self._refused else self._tick_seconds):
                    await self._begun.wait()
            self._begun.clear()

    def _forget_processes_that_ended(self) -> None:
        running = {engine.pid for engine in self._engines()}
        for key in [key for key in self._states if key[0] not in running]:
            del self._states[key]
            self._waiting_since.pop(key, None)

    async def _wake_for_who_waits(self, console: AdminConsole, process_id: int) -> None:
        """Open the gates at which somebody waits, by two questions: each takes a turn of a PgBouncer full of logins."""
        closed = [key for key, state in self._states.items() if key[0] == process_id and state.gate is Gate.CLOSED]
        if not closed:
            return
        async with asyncio.timeout(CONSOLE_SECONDS):
            waited_for = {pool.database for pool in await console.show_pools() if pool.cl_waiting}
            if waited_for and await console.show_state() != ACTIVE:
                await self._stand_back(console, process_id)
                return
        for key in closed:
            if key[1] in waited_for:
                await self._wake(console, key)

    async def _look_at(self, console: AdminConsole, process_id: int) -> None:
        async with asyncio.timeout(CONSOLE_SECONDS):
            if await console.show_state() != ACTIVE:
                await self._stand_back(console, process_id)
                return
            databases = [row for row in await console.show_databases() if row.name != ADMIN_DATABASE]
            stats = {row.database: row.total_xact_count for row in await console.show_stats()}
            pools = await console.show_pools()  # last: it decides
        for database in databases:
            entry = database.name
            look = _look([pool for pool in pools if pool.database == entry], bool(database.paused))
            look = replace(look, transactions=stats.get(entry, 0), is_refused=entry in self._refused)
            key = (process_id, entry)
            self._states[key], act = step(self._states[key], look, self._sleep_seconds, self._refresh_seconds)
            await self._do(act, console, key)

    async def _stand_back(self, console: AdminConsole, process_id: int) -> None:
        # PgBouncer refuses the watch's SUSPEND while a single database is paused.
        for database in await console.show_databases():
            if database.paused and database.name != ADMIN_DATABASE:
                self._change((process_id, database.name), gate=Gate.OPEN)
                await console.resume(database.name)

    async def _do(self, act: Act, console: AdminConsole, key: tuple[int, str]) -> None:
        if act is not Act.WAKE:
            self._waiting_since.pop(key, None)
        match act:
            case Act.CLOSE:
                await self._close(console, key)
            case Act.WAKE:
                await self._wake(console, key)
            case Act.PROVE:
                has_login = await self._prove(key[1]) is Verdict.ACCEPTED
                self._change(key, has_given_up=not has_login)
            case Act.REFRESH if not await self._close(console, key):
                await console.resume(key[1])
                self._change(
                    key, gate=Gate.OPEN, proven_at=time.monotonic() - self._refresh_seconds + REFRESH_AGAIN_SECONDS
                )
            case Act.REFRESH | Act.NOTHING:
                pass  # closed: whoever waits, wakes it

    async def _close(self, console: AdminConsole, key: tuple[int, str]) -> bool:
        """Pause the pool; return whether its server connections are closed already."""
        self._change(key, gate=Gate.CLOSED)
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await console.pause(key[1])
        except TimeoutError:
            return False
        return True

    async def _wake(self, console: AdminConsole, key: tuple[int, str]) -> None:
        entry, now = key[1], time.monotonic()
        waiting_since = self._waiting_since.setdefault(key, now)
        verdict = await self._prove(entry)
        if verdict in (Verdict.ACCEPTED, Verdict.AWAY):
            await console.resume(entry)
            self._change(key, gate=Gate.OPEN, proven_at=time.monotonic())
        elif now - waiting_since >= self._patience_seconds:
            logger.error(
                "no login is known that the database accepts: clients are told so", extra={"fields": {"entry": entry}}
            )
            await console.resume(entry)
            self._change(key, gate=Gate.OPEN, has_given_up=True)

    def _change(self, key: tuple[int, str], **changes: Any) -> None:
        self._states[key] = replace(self._states[key], **changes)


def _look(pools: list[PoolRow], is_paused: bool) -> Look:
    logging_in = sum(pool.sv_login for pool in pools)
    return Look(
        now=time.monotonic(),
        is_paused=is_paused,
        servers=sum(pool.server_connections for pool in pools) - logging_in,
        logging_in=logging_in,
        active=sum(pool.sv_active for pool in pools),
        waiting=sum(pool.cl_waiting for pool in pools),
        transactions=0,
    )
