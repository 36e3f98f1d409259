"""A role and a database for the layer, straight on the embedded PostgreSQL, and handlers decorated against it."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from emberpool import declared, telemetry, warm_connection
from emberpool import settings as names
from emberpool.session import SessionConnection
from emberpool_local.postgres.server import EmbeddedPostgres

ROLE, PASSWORD, DATABASE = "layer_user", "layer-password-for-tests", "layer_tests"

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]


@dataclass
class Context:
    """Lambda's context object as far as the layer reads it."""

    remaining_ms: int = 30_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


def ledger(admin: Admin) -> list[str]:
    """Return what the handlers have committed."""
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def terminate(admin: Admin, backend_pid: int) -> None:
    """End a server connection, and wait until it has ended."""
    admin.execute("select pg_terminate_backend(%s, 5000)", [backend_pid])


@contextmanager
def silent(backend_pid: int) -> Iterator[None]:
    """Keep a backend from answering, while its kernel still takes what is sent to it."""
    os.kill(backend_pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(backend_pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def database(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    postgres.create_role_and_database(ROLE, PASSWORD, DATABASE)
    with psycopg.connect(postgres.conninfo(user=ROLE, password=PASSWORD, database=DATABASE)) as connection:
        connection.execute("create table ledger (id text primary key)")
    return postgres


@pytest.fixture
def admin(database: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as connection:
        connection.execute("truncate ledger")
        yield connection


@pytest.fixture
def environment(database: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the layer's variables as infra would; call it with overrides. Ends the warm connections of the test."""

    def set_variables(**overrides: str | None) -> None:
        given = {
            names.HOST: database.host,
            names.PORT: str(database.port),
            names.DATABASE: DATABASE,
            names.USER: ROLE,
            names.PASSWORD: PASSWORD,
            names.SSLMODE: "disable",
            **overrides,
        }
        for name, value in given.items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    set_variables()
    declared.shared_connection.cache_clear()
    telemetry._recorder._warned.clear()  # each test is an environment of its own
    opened = []
    original = declared.shared_connection
    monkeypatch.setattr(declared, "shared_connection", lambda settings: opened.append(original(settings)) or opened[-1])
    yield set_variables
    for warm in opened:
        warm.discard()


@pytest.fixture
def backend_pid(environment: Callable[..., None]) -> Callable[..., int]:
    """A handler that answers with the process id of its server connection."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> int:
        return connection.execute("select pg_backend_pid()").fetchone()[0]

    return handler


@pytest.fixture
def die_at_commit(admin: Admin) -> Iterator[None]:
    """COMMIT of a row 'aborts' ends the backend before it is committed."""
    admin.execute(
        """
        create or replace function die() returns trigger language plpgsql security definer as
        $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); return null; end $$;
        create constraint trigger die_at_commit after insert on ledger
        deferrable initially deferred for each row when (new.id = 'aborts') execute function die();
        """
    )
    yield
    admin.execute("drop function die cascade")


@pytest.fixture
def cut_after_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loses the connection between the server's commit and its answer: the socket is shut down under libpq."""
    original = SessionConnection.commit

    def commit(self: SessionConnection) -> None:
        if self.read_only:
            return original(self)
        self.pgconn.send_query(b"COMMIT")
        self.pgconn.flush()
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as wire:
            assert select.select([wire], [], [], 10.0)[0]  # the server has committed: its answer is in our buffer
            wire.recv(65536)
            wire.shutdown(socket.SHUT_RDWR)
        self.pgconn.consume_input()
        return None

    monkeypatch.setattr(SessionConnection, "commit", commit)
