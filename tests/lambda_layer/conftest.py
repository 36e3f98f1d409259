"""A role and a database for the layer, straight on the embedded PostgreSQL, and handlers decorated against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from emberpool import declared, warm_connection
from emberpool import settings as names
from emberpool_local.postgres.server import EmbeddedPostgres

ROLE, PASSWORD, DATABASE = "layer_user", "layer-password-for-tests", "layer_tests"


@dataclass
class Context:
    """Lambda's context object as far as the layer reads it."""

    remaining_ms: int = 30_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


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
