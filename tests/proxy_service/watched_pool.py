"""A real PgBouncer in front of a database that tests take away, the agent's watch on it, and clients that write."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.database_watch import DatabaseWatch
from emberpool_proxy.agent.pool_connection import PoolConnection
from emberpool_proxy.health import Health
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.log_lines import event_of
from emberpool_proxy.settings import ProxySettings

from .bare_pgbouncer import AGENT_PASSWORD, CLIENT, CLIENT_PASSWORD, DATABASE, ROLE, ROLE_PASSWORD, BarePgbouncer

BOUND_SECONDS = 20.0
POOL_SIZE = 3
POOL_SETTINGS = {
    "default_pool_size": str(POOL_SIZE),
    "query_wait_timeout": "20",
    "server_login_retry": "0.1",
    "server_connect_timeout": "1",
    "log_connections": "0",
    "log_disconnections": "1",
}
LOG_LOOK_SECONDS = 0.001
CLIENT_PAUSE_SECONDS = 0.01
REFUSED = "server login has been failing"  # PgBouncer's own; never sent to the database


async def until(failure: str, fact: Callable[[], object], within_seconds: float = BOUND_SECONDS) -> None:
    """Return once `fact()` is true; `failure` is the sentence of the failure."""
    end = time.monotonic() + within_seconds
    while not fact():
        assert time.monotonic() < end, f"{failure} (within {within_seconds:g} s)"
        await asyncio.sleep(0.01)


def entry(host: str, port: int) -> dict[str, str]:
    """Return the entry of [databases] for the server there."""
    return {DATABASE: f"host={host} port={port} dbname={DATABASE} user={ROLE}"}


async def states(pools: list[BarePgbouncer]) -> list[str]:
    """Return each PgBouncer's state: active, paused or suspended."""
    found = []
    for pool in pools:
        async with await pool.console() as console:
            found.append(await console.show_state())
    return found


async def all_become(state: str, pools: list[BarePgbouncer]) -> None:
    """Return once each PgBouncer is in this state: orders are sent to each by itself."""
    end = time.monotonic() + BOUND_SECONDS
    while (found := await states(pools)) != [state] * len(pools):
        assert time.monotonic() < end, f"not all PgBouncers become {state}: {found} (within {BOUND_SECONDS:g} s)"
        await asyncio.sleep(0.01)


@dataclass
class WatchedEngine:
    """One PgBouncer as the watch wants it."""

    index: int
    pool: BarePgbouncer
    console: AdminConsole | None = None

    @property
    def pid(self) -> int:
        return self.pool.child.pid

    @property
    def folder(self) -> object:
        return self.pool.folder


class WatchedEngines:
    """The PgBouncers of one test, each with a console that is open."""

    def __init__(self, pools: list[BarePgbouncer]) -> None:
        self.all = [WatchedEngine(index, pool) for index, pool in enumerate(pools)]

    async def connect(self, engine: WatchedEngine) -> AdminConsole:
        return await engine.pool.console()

    async def connect_to_pool(self, engine: WatchedEngine, database: str) -> PoolConnection:
        return await PoolConnection.open(engine.pool.folder, engine.pool.port, AGENT_PASSWORD, database)

    async def open(self) -> None:
        for engine in self.all:
            engine.console = await engine.pool.console()

    async def close(self) -> None:
        for engine in self.all:
            if engine.console:
                await engine.console.close()


@asynccontextmanager
async def watching(pools: list[BarePgbouncer], host: str, port: int, **settings: object) -> AsyncIterator[Health]:
    """Run the agent's watch on these PgBouncers, fed with their log; yields what it makes of the database."""
    health, engines = Health(), WatchedEngines(pools)
    watch = DatabaseWatch(_settings(host, port, settings), engines, health, lambda: (ROLE, ROLE_PASSWORD))
    await engines.open()
    tasks = [asyncio.create_task(_follow_log(pool, watch)) for pool in pools]
    tasks.append(asyncio.create_task(watch.run()))
    try:
        yield health
    finally:
        failures = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engines.close()
    assert not failures


def _settings(host: str, port: int, changes: dict[str, object]) -> ProxySettings:
    given: dict[str, object] = {
        "database_host": host,
        "database_port": port,
        "database_name": DATABASE,
        "database_user": ROLE,
        "database_password": ROLE_PASSWORD,
        "client_user": CLIENT,
        "client_password": CLIENT_PASSWORD,
        "server_tls_mode": "disable",
        "database_check_seconds": 0.2,
        **changes,
    }
    return ProxySettings(**given)  # type: ignore[arg-type]


async def _follow_log(pool: BarePgbouncer, watch: DatabaseWatch) -> None:
    with pool.child.log_path.open(errors="replace") as log:
        while True:
            line = log.readline()
            if not line.endswith("\n"):
                log.seek(log.tell() - len(line.encode()))
                await asyncio.sleep(LOG_LOOK_SECONDS)
            elif event := event_of(line.rstrip("\n")):
                watch.on_log_event(event)


@dataclass(frozen=True)
class Failure:
    """One transaction that failed, on the clock of time.monotonic()."""

    begun: float
    ended: float
    message: str


@dataclass
class Ledger:
    """Clients that write ids of their own choosing, and what they were told of each."""

    acknowledged: list[str] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # of the acknowledged ones
    failures: list[Failure] = field(default_factory=list)

    def written_since(self, moment: float) -> int:
        return sum(ended > moment for ended in self.ended)

    def check(self, database: EmbeddedPostgres) -> None:
        """Every acknowledged id is in the database once; no id is there twice."""
        with psycopg.connect(database.conninfo(database=DATABASE)) as connection:
            found = Counter(row[0] for row in connection.execute("select id from ledger"))
        assert [id_ for id_ in self.acknowledged if id_ not in found] == []
        assert [id_ for id_, count in found.items() if count > 1] == []


def make_ledger(database: EmbeddedPostgres) -> None:
    """Make the table that the clients write to."""
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as connection:
        connection.execute("drop table if exists ledger")
        connection.execute("create table ledger (id text)")
        connection.execute(f"alter table ledger owner to {ROLE}")


@asynccontextmanager
async def writing(conninfos: list[str], clients: int = 6) -> AsyncIterator[Ledger]:
    """Write with `clients` clients, shared among the PgBouncers, until the block ends."""
    ledger, stop = Ledger(), threading.Event()
    threads = [
        threading.Thread(target=_write, args=(ledger, stop, str(number), conninfos[number % len(conninfos)]))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, BOUND_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a client hangs"


def _write(ledger: Ledger, stop: threading.Event, name: str, conninfo: str) -> None:
    connection: psycopg.Connection[tuple[object, ...]] | None = None
    count = 0
    while not stop.is_set():
        count += 1
        begun = time.monotonic()
        try:
            if connection is None:
                connection = psycopg.connect(conninfo, connect_timeout=int(BOUND_SECONDS), prepare_threshold=None)
            connection.execute("insert into ledger values (%s)", (f"{name}-{count}",))
            connection.commit()
            ledger.acknowledged.append(f"{name}-{count}")
            ledger.ended.append(time.monotonic())
        except psycopg.Error as error:
            ledger.failures.append(Failure(begun, time.monotonic(), str(error)))
            if connection is not None:
                connection.close()
            connection = None
        stop.wait(CLIENT_PAUSE_SECONDS)
    if connection is not None:
        connection.close()
