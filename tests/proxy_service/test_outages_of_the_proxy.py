"""The whole proxy while its database restarts, is away, or sleeps: clients wait in line."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import pytest

from emberpool.opening import SHORTEST_PAUSE_SECONDS
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER, Proxy, wait_until

MakeProxy = Callable[..., Proxy]
CLIENTS = 30
POOL = 5


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that may be stopped: the one that all tests share must not be."""
    with EmbeddedPostgres() as postgres:
        postgres.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        with psycopg.connect(postgres.conninfo(database=DATABASE), autocommit=True) as admin:
            admin.execute("create table ledger (id uuid not null)")
            admin.execute("grant all on ledger to public")
        yield postgres


@pytest.fixture
def proxy(make_proxy: MakeProxy, server: EmbeddedPostgres) -> Proxy:
    return make_proxy(
        database_host=server.host,
        database_port=server.port,
        max_server_connections=POOL,
        query_wait_seconds=30,
        server_idle_seconds=2,
    ).start_ready()


@dataclass
class Ledger:
    """What clients were told: their rows' ids, and the errors."""

    acknowledged: list[uuid.UUID] = field(default_factory=list)
    unknown: list[uuid.UUID] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def writers(proxy: Proxy) -> Iterator[Ledger]:
    """Clients that each write row after row, and go on after an error as the layer does.

    With a new connection after the layer's shortest pause: without one they would count how fast the machine is.
    """
    ledger, stop = Ledger(), threading.Event()

    def write() -> None:
        connection = None
        while not stop.is_set():
            row = uuid.uuid4()
            try:
                if connection is None:
                    connection = psycopg.connect(proxy.conninfo(connect_timeout="30"), autocommit=True)
                connection.execute("insert into ledger values (%s)", (row,))
                ledger.acknowledged.append(row)
            except psycopg.Error as error:
                ledger.errors.append(str(error))
                ledger.unknown.append(row)
                if connection:
                    connection.close()
                connection = None
                stop.wait(SHORTEST_PAUSE_SECONDS)
        if connection:
            connection.close()

    threads = [threading.Thread(target=write) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def grows(ledger: Ledger, by: int = 10 * CLIENTS) -> Callable[[], bool]:
    """A fact: so many more rows are acknowledged than now."""
    goal = len(ledger.acknowledged) + by
    return lambda: len(ledger.acknowledged) >= goal


def check(ledger: Ledger, server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.conninfo(database=DATABASE)) as admin:
        rows = [row for (row,) in admin.execute("select id from ledger")]
    assert len(rows) == len(set(rows)), "something ran twice"
    assert set(ledger.acknowledged) <= set(rows), "an acknowledged commit was lost"


@pytest.mark.parametrize("down_seconds", [0.0, 2.0])
def test_restarted_database_costs_only_what_was_in_flight(
    proxy: Proxy, server: EmbeddedPostgres, down_seconds: float
) -> None:
    """New work waits: errors come at the loss only and are few, no commit is lost, nothing runs twice.

    Before the pause, for some milliseconds, new statements are told "server login has been failing": they were
    never sent, and the layer repeats them.
    """
    with writers(proxy) as ledger:
        wait_until("the writers did not start", grows(ledger))
        server.stop()
        threading.Event().wait(down_seconds)
        server.start()
        wait_until("the writers did not go on", grows(ledger), timeout=40)
        errors_at_return = len(ledger.errors)
        wait_until("the writers did not go on", grows(ledger, 30 * CLIENTS), timeout=40)
        assert len(ledger.errors) == errors_at_return
    check(ledger, server)
    never_sent = [error for error in ledger.errors if "server login has been failing" in error]
    assert len(ledger.errors) - len(never_sent) <= POOL
    assert len(never_sent) < CLIENTS


def test_client_that_finds_the_database_asleep_wakes_it_and_waits(proxy: Proxy, server: EmbeddedPostgres) -> None:
    """With an empty pool and no database, clients wait in line until there is one."""
    with psycopg.connect(proxy.conninfo(), autocommit=True) as idle:
        idle.execute("select 1")
        wait_until("the pool did not go to sleep", lambda: proxy.get("/status")[1]["database"]["asleep"])
        server.stop()
        answers: list[object] = []

        def ask(connection: psycopg.Connection) -> None:
            try:
                answers.append(connection.execute("select 1").fetchone())
            except psycopg.Error as error:
                answers.append(error)

        def come() -> None:
            with psycopg.connect(proxy.conninfo(connect_timeout="30"), autocommit=True) as coming:
                ask(coming)

        threads = [threading.Thread(target=ask, args=(idle,)), threading.Thread(target=come)]
        for thread in threads:
            thread.start()
        wait_until("nobody waits", lambda: proxy.get("/healthz")[1]["clients_waiting"] >= 2)
        server.start()
        for thread in threads:
            thread.join()
    assert answers == [(1,), (1,)]
