"""Keeps PgBouncer from trying an unproven password on an empty pool: pauses such pools, proves the login, resumes.

Owns the pauses that it makes (`is_asleep`), nobody else's. When the database cannot be asked it lets go of its pause
without resuming: whoever watches the database finds the pool paused, and resumes it when the database is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Protocol

import psycopg

from emberpool_proxy.credentials.gate_state import Act, Gate, GateState, Look, step
from emberpool_proxy.credentials.probe import Verdict
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.rows import PoolRow

TICK_SECONDS = 1.0
WATCHFUL_SECONDS = 0.05  # a client that waits at a closed gate is seen this soon
CONSOLE_SECONDS = 3.0
PAUSE_SECONDS = 0.25  # a refresh must not make clients wait for somebody's long transaction
REFRESH_AGAIN_SECONDS = 30.0

Prove = Callable[[str], Awaitable[Verdict]]


class Engine(Protocol):
    """One PgBouncer process."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def pid(self) -> int: ...  # noqa: D102

    @property
    def console(self) -> AdminConsole | None: ...  # noqa: D102


class LoginGate:
    """The gates of all pools of all processes. `prove(entry)` says whether the database accepts the entry's login.

    `patience_seconds` bounds how long clients wait at a gate that cannot be opened, before PgBouncer tells them why.
    """

    def __init__(
        self,
        engines: Callable[[], Iterable[Engine]],
        prove: Prove,
        patience_seconds: float,
        tick_seconds: float = TICK_SECONDS,
        sleep_seconds: float | None = None,
    ) -> None:
        self._engines = engines
        self._prove = prove
        self._patience_seconds = patience_seconds
        self._tick_seconds = tick_seconds
        self._sleep_seconds = sleep_seconds
        self._states: dict[tuple[int, str], GateState] = defaultdict(GateState)
        self._waiting_since: dict[tuple[int, str], float] = {}
        self._held: set[str] = set()

    def is_asleep(self, process_id: int, entry: str) -> bool:
        """Whether this pool is paused by the gate, and by nobody else."""
        return self._states[process_id, entry].gate is Gate.CLOSED

    async def hold(self, entries: frozenset[str]) -> None:
        """Be watchful: the database refuses the role of these entries, and their pools may run empty."""
        self._held |= entries

    async def release(self, entries: frozenset[str]) -> None:
        """End the watchfulness; a closed gate opens when its login is proven."""
        self._held -= entries

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            is_watchful = False
            for engine in self._engines():
                try:
                    is_watchful |= await self._look_at(engine)
                except (psycopg.Error, TimeoutError):
                    continue  # it ends, or hangs: others see to that
            await asyncio.sleep(WATCHFUL_SECONDS if is_watchful or self._held else self._tick_seconds)

    async def _look_at(self, engine: Engine) -> bool:
        """Look at every pool of a process; return whether somebody may come to a closed gate."""
        console, process_id = engine.console, engine.pid
        if console is None:
            return False
        async with asyncio.timeout(CONSOLE_SECONDS):
            databases = [row for row in await console.show_databases() if row.force_user]
            pools = await console.show_pools()
            stats = {row.database: row.total_xact_count for row in await console.show_stats()}
        is_watchful = False
        for database in databases:
            own = [pool for pool in pools if pool.database == database.name]
            look = _look(own, bool(database.paused), stats.get(database.name, 0))
            key = (process_id, database.name)
            state, act = step(self._states[key], look, *([self._sleep_seconds] if self._sleep_seconds else []))
            self._states[key] = state
            await self._do(act, console, key)
            is_watchful |= self._states[key].gate is Gate.CLOSED and any(pool.client_connections for pool in own)
        return is_watchful

    async def _do(self, act: Act, console: AdminConsole, key: tuple[int, str]) -> None:
        if act is not Act.WAKE:
            self._waiting_since.pop(key, None)
        if act is Act.CLOSE:
            await self._close(console, key)
        elif act is Act.WAKE:
            await self._wake(console, key)
        elif act is Act.REFRESH:
            proven_at = time.monotonic() - REFRESH_AGAIN_SECONDS
            if await self._close(console, key):
                await self._wake(console, key)
            else:
                await console.resume(key[1])
                self._set(key, gate=Gate.OPEN, proven_at=proven_at)

    async def _close(self, console: AdminConsole, key: tuple[int, str]) -> bool:
        """Pause the pool; return whether its server connections are closed already."""
        self._set(key, gate=Gate.CLOSED)
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await console.pause(key[1])
        except TimeoutError:
            return False
        return True

    async def _wake(self, console: AdminConsole, key: tuple[int, str]) -> None:
        entry = key[1]
        verdict = await self._prove(entry)
        now = time.monotonic()
        if verdict is Verdict.ACCEPTED:
            await console.resume(entry)
            self._set(key, gate=Gate.OPEN, proven_at=now)
        elif verdict is Verdict.AWAY:
            self._set(key, gate=Gate.NOT_OURS)
        elif now - self._waiting_since.setdefault(key, now) >= self._patience_seconds:
            logger.error(
                "no login is known that the database accepts: clients are told so", extra={"fields": {"entry": entry}}
            )
            await console.resume(entry)
            self._set(key, gate=Gate.OPEN, proven_at=now)

    def _set(self, key: tuple[int, str], gate: Gate, proven_at: float | None = None) -> None:
        state = self._states[key]
        self._states[key] = replace(state, gate=gate, proven_at=state.proven_at if proven_at is None else proven_at)


def _look(pools: list[PoolRow], is_paused: bool, transactions: int) -> Look:
    logging_in = sum(pool.sv_login for pool in pools)
    return Look(
        now=time.monotonic(),
        is_paused=is_paused,
        servers=sum(pool.server_connections for pool in pools) - logging_in,
        logging_in=logging_in,
        active=sum(pool.sv_active for pool in pools),
        waiting=sum(pool.cl_waiting for pool in pools),
        transactions=transactions,
    )
