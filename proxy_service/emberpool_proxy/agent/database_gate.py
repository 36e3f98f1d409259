"""Lets new work through to the database or keeps it waiting: PAUSE and RESUME of one PgBouncer process.

RESUME alone would fail clients: as long as a pool's last login failed and it has no server connection, PgBouncer
refuses every new query ("server login has been failing"), also in the milliseconds between RESUME and the first login.
So a pool is handed over: RESUME and SUSPEND in one packet. Suspended, PgBouncer reads nothing from its clients, but
logs in for those that wait already; once a pool has a server connection again, RESUME lets everybody go on. A question
of our own is one of those that wait, so that a pool without clients is made well, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg

from emberpool_proxy.agent.database_probe import QUESTION, answer_of
from emberpool_proxy.agent.database_state import Answer
from emberpool_proxy.agent.pool_connection import PoolConnection
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.rows import PoolRow

OPEN_SECONDS = 1.0
VIEW_SECONDS = 0.5
ENQUEUE_SECONDS = 0.05  # a login to the pool over its unix socket takes 3 ms
# How long clients that do not wait yet may find nobody reading: as long as PgBouncer gives a slow login.
HANDOVER_SECONDS = 3.0
HANDOVER_LOOK_SECONDS = 0.003
POOL_ANSWER_SECONDS = 1.0

# What our question through the pool is told when it was not the database that failed.
WAITED_IN_VAIN = ("query_wait_timeout", "client_login_timeout")
CANNOT_LOG_IN = ("server login has been failing", "server conn crashed", "server login failed", "connect")
# The better answer of one pool tells of the database, the worse one of that pool; except that read-only is read-only.
WEIGHTS = (Answer.READ_ONLY, Answer.WRITABLE, Answer.AWAY, Answer.REFUSED, Answer.SILENT, Answer.NOT_ASKED)


class PoolEngine(Protocol):
    """One PgBouncer process."""

    index: int
    pid: int
    folder: Path
    console: AdminConsole | None


class PoolEngines(Protocol):
    """The PgBouncer processes of this task."""

    @property
    def all(self) -> Iterable[Any]:
        """Every process, a PoolEngine each."""

    async def connect(self, engine: Any) -> AdminConsole:
        """Open one more console."""

    async def connect_to_pool(self, engine: Any, database: str) -> PoolConnection:
        """Log in as a client of a pool."""


@dataclass(frozen=True)
class View:
    """What one process shows of its pools."""

    pools: tuple[PoolRow, ...]
    state: str  # active, paused or suspended
    transactions: int  # since PgBouncer's start

    @property
    def servers(self) -> int:
        """Connections to the database that are logged in."""
        return sum(map(logged_in, self.pools))

    @property
    def clients_waiting(self) -> int:
        """Clients in line."""
        return sum(pool.cl_waiting for pool in self.pools)


class Gate:
    """The gate of one process. It has consoles of its own, as a PAUSE blocks the one that it is given on."""

    def __init__(self, engines: PoolEngines, engine: PoolEngine, handover_seconds: float = HANDOVER_SECONDS) -> None:
        self._engines = engines
        self._engine = engine
        self._handover_seconds = handover_seconds
        self._pid = 0
        self._orders: AdminConsole | None = None
        self._view: AdminConsole | None = None
        self._is_paused = False
        self.questions = 0  # transactions of our own through the pools

    @property
    def is_open(self) -> bool:
        """Whether orders reach the process that runs now."""
        return self._orders is not None and self._pid == self._engine.pid

    async def open(self) -> bool:
        """Open the consoles if they are not; return whether they are. A process that starts is left alone."""
        if self.is_open:
            return True
        await self.close()
        if self._engine.console is None:
            return False
        pid = self._engine.pid
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._view = await self._engines.connect(self._engine)
                self._orders = await self._engines.connect(self._engine)
        except (psycopg.Error, TimeoutError):
            await self.close()
            return False
        self._pid = pid
        return True

    async def close(self) -> None:
        """Close the consoles. What is paused stays so."""
        for console in (self._orders, self._view):
            if console is not None:
                await console.close()
        self._orders = self._view = None

    def order(self, *commands: str) -> bool:
        """Give orders in one packet without waiting for an answer; return whether they went out."""
        if self._orders is None or not self.is_open:
            return False
        try:
            self._orders.send(*commands)
        except psycopg.Error:
            self._orders = None
            return False
        if commands[-1] != "RECONNECT":
            self._is_paused = commands[-1] == "PAUSE"
        return True

    def pause(self) -> bool:
        """Let new work wait from now on. What runs may end; idle server connections are closed."""
        if not self._is_paused:
            self._is_paused = self.order("PAUSE")
        return self._is_paused

    async def look(self) -> View | None:
        """Return what the process shows, None if it does not answer in time."""
        if not await self.open() or self._view is None:
            return None
        try:
            async with asyncio.timeout(VIEW_SECONDS):
                stats = await self._view.show_stats()
                pools = await self._view.show_pools()
                view = View(
                    pools=tuple(pool for pool in pools if not pool.is_console),
                    state=await self._view.show_state(),
                    transactions=sum(row.total_xact_count for row in stats if not row.is_console),
                )
        except (psycopg.Error, TimeoutError):
            await self.close()
            return None
        self._is_paused = view.state == "paused"
        return view

    async def server_addresses(self) -> set[str]:
        """Return the addresses that the pools are connected to; empty if the process does not answer in time."""
        if self._view is None:
            return set()
        try:
            async with asyncio.timeout(VIEW_SECONDS):
                return {server.addr for server in await self._view.show_servers()}
        except (psycopg.Error, TimeoutError):
            return set()

    async def ask(self, pools: Iterable[PoolRow]) -> Answer:
        """Ask the database through these pools, as a client would."""
        async with self._questions({pool.database for pool in pools}) as questions:
            return await _answers(questions, POOL_ANSWER_SECONDS)

    async def hand_over(self, *, reconnect: bool) -> Answer:
        """Resume without failing a client, and ask the pools. Paused again, and AWAY, when none can log in.

        `reconnect`: server connections that still run something are closed after it.
        """
        view = await self.look()
        if view is None:
            return Answer.NOT_ASKED
        if view.state == "active":
            return await self.ask(view.pools)
        async with self._questions({pool.database for pool in view.pools}) as questions:
            with suppress(TimeoutError):
                async with asyncio.timeout(ENQUEUE_SECONDS):
                    await asyncio.gather(*(question.is_settled.wait() for question in questions))
            # A pool that has never logged in keeps even its clients' logins waiting: nobody is refused there.
            warm = {question.database for question in questions if question.is_in_line}
            first = ("RESUME", "PAUSE") if view.state == "suspended" else ()
            again = ("RECONNECT",) if reconnect else ()
            self.order(*first, *again, "RESUME", *(("SUSPEND",) if warm else ()))
            if warm:
                if not await self._has_logged_in(warm):
                    self.order("RESUME", "PAUSE")
                    return Answer.AWAY
                self.order("RESUME")
            return await _answers(questions, POOL_ANSWER_SECONDS)

    async def _has_logged_in(self, databases: set[str]) -> bool:
        """Wait until each of these pools has a server connection; return whether one has, after handover_seconds."""
        until = time.monotonic() + self._handover_seconds
        has_any = False
        while self._view is not None and time.monotonic() < until:
            try:
                async with asyncio.timeout(VIEW_SECONDS):
                    pools = [pool for pool in await self._view.show_pools() if pool.database in databases]
            except (psycopg.Error, TimeoutError):
                return False
            has_any = any(map(logged_in, pools))
            if all(map(logged_in, pools)):
                return True
            await asyncio.sleep(HANDOVER_LOOK_SECONDS)
        return has_any

    @asynccontextmanager
    async def _questions(self, databases: set[str]) -> AsyncIterator[list[_Question]]:
        questions = [_Question(self._engines, self._engine, database) for database in sorted(databases)]
        self.questions += len(questions)
        try:
            yield questions
        finally:
            for question in questions:
                question.task.cancel()
            await asyncio.gather(*(question.task for question in questions), return_exceptions=True)


class _Question:
    """One question through one pool, on its way from the start."""

    def __init__(self, engines: PoolEngines, engine: PoolEngine, database: str) -> None:
        self.database = database
        self.is_in_line = False
        self.is_settled = asyncio.Event()  # in line, or already over
        self.task = asyncio.create_task(self._ask(engines, engine))

    async def _ask(self, engines: PoolEngines, engine: PoolEngine) -> Answer:
        try:
            connection = await engines.connect_to_pool(engine, self.database)
            self.is_in_line = True
            self.is_settled.set()
            async with connection:
                return answer_of(await (await connection.execute(QUESTION)).fetchone())
        except psycopg.Error as error:
            return _meaning(str(error))
        finally:
            self.is_settled.set()


def logged_in(pool: PoolRow) -> int:
    """Return how many connections of the pool to the database are logged in."""
    return pool.server_connections - pool.sv_login


def worst(answers: Iterable[Answer]) -> Answer:
    """Return what several pools' answers say of their one database."""
    return min(answers, key=WEIGHTS.index, default=Answer.NOT_ASKED)


async def _answers(questions: list[_Question], within_seconds: float) -> Answer:
    if not questions:
        return Answer.NOT_ASKED
    await asyncio.wait([question.task for question in questions], timeout=within_seconds)
    return worst(question.task.result() if question.task.done() else Answer.SILENT for question in questions)


def _meaning(words: str) -> Answer:
    if any(reason in words for reason in WAITED_IN_VAIN):
        return Answer.SILENT
    if "authentication failed for user" in words or "does not exist" in words or "too many" in words:
        return Answer.REFUSED
    if "terminating connection" in words or any(reason in words for reason in CANNOT_LOG_IN):
        return Answer.AWAY
    return Answer.NOT_ASKED  # PgBouncer's own: shutting down, an entry that was removed, the unix socket is gone
