"""The decorator's options and what they promise, against a real PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from psycopg import IsolationLevel

from emberpool import (
    OutsideInvocation,
    SettingsInvalid,
    current_connection,
    warm_connection,
)
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import DATABASE, Admin, Context, Environment, ledger

# --- where the connection is


def test_handler_without_the_parameter_uses_the_current_connection(environment: Environment, admin: Admin) -> None:
    """A two-argument handler, and what it calls, get the connection by current_connection()."""

    def business() -> None:
        current_connection().execute("insert into ledger values ('deep')")

    @warm_connection
    def handler(event: object, context: object) -> None:
        business()

    handler({}, Context())
    assert ledger(admin) == ["deep"]


def test_there_is_no_current_connection_outside(environment: Environment) -> None:
    """Outside of an invocation current_connection() says so instead of opening one."""

    @warm_connection
    def handler(event: object, context: object) -> None:
        current_connection().execute("select 1")

    handler({}, Context())
    with pytest.raises(OutsideInvocation, match="@warm_connection"):
        current_connection()


def test_powertools_resolver_owns_the_signature(environment: Environment, admin: Admin) -> None:
    """A Powertools event handler's routes use the current connection of the decorated entry."""
    app = APIGatewayRestResolver()

    @app.post("/orders")
    def place() -> dict[str, str]:
        current_connection().execute("insert into ledger values ('routed')")
        return {"placed": "routed"}

    @warm_connection
    def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
        return app.resolve(event, context)

    event = {"path": "/orders", "httpMethod": "POST", "requestContext": {"requestId": "1"}, "body": None}
    assert handler(event, Context())["statusCode"] == 200
    assert ledger(admin) == ["routed"]


class LambdaContext(Context):
    function_name = memory_limit_in_mb = invoked_function_arn = aws_request_id = "1"


@pytest.mark.parametrize("order", ["outside", "inside"])
def test_composes_with_powertools_in_either_order(
    environment: Environment, admin: Admin, order: str, request: pytest.FixtureRequest
) -> None:
    """Powertools' decorators work around and inside of ours."""
    service = f"compose-{order}"
    logger = Logger(service=service)
    # The layer's own lines join a Powertools logger that exists: it must not outlive this test.
    request.addfinalizer(lambda: logging.root.manager.loggerDict.pop(service))

    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        connection.execute("insert into ledger values (%s)", [event])
        return event

    if order == "outside":
        decorated = logger.inject_lambda_context(warm_connection(handler))
    else:
        decorated = warm_connection(logger.inject_lambda_context(handler))
    assert decorated("a", LambdaContext()) == "a"
    assert ledger(admin) == ["a"]


def test_nested_handlers_share_the_transaction(environment: Environment, admin: Admin) -> None:
    """A decorated function called inside another joins its transaction as a savepoint."""

    @warm_connection
    def inner(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])
        if event == "bad":
            raise ValueError(event)

    @warm_connection
    def outer(event: object, context: object, connection: psycopg.Connection) -> list[str]:
        inner("good", context)
        with pytest.raises(ValueError, match="bad"):
            inner("bad", context)
        return ledger(admin)

    assert outer({}, Context()) == []
    assert ledger(admin) == ["good"]


def test_generator_handler_keeps_its_transaction_while_it_yields(environment: Environment, admin: Admin) -> None:
    """A generator's transaction begins with its first item and is committed with its last."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> Iterator[int]:
        for number in (1, 2):
            connection.execute("insert into ledger values (%s)", [str(number)])
            yield number

    items = handler({}, Context())
    assert next(items) == 1
    assert ledger(admin) == []
    assert list(items) == [2]
    assert ledger(admin) == ["1", "2"]


def test_async_handler_is_refused_when_it_is_decorated() -> None:
    """Lambda's Python runtime does not await, so an async handler would never run."""
    with pytest.raises(TypeError, match="does not await"):

        @warm_connection
        async def handler(event: object, context: object, connection: psycopg.Connection) -> None: ...


def test_unknown_option_is_refused() -> None:
    """A misspelt option fails where it is written."""
    with pytest.raises(TypeError, match="idempotant"):
        warm_connection(idempotant=True)


# --- the transaction


def test_read_only_and_isolation_level_apply_and_do_not_leak(environment: Environment, admin: Admin) -> None:
    """The options hold for their handler's transactions only, on the one shared connection."""

    def seen(event: object, context: object, connection: psycopg.Connection) -> tuple[str, str, int]:
        isolation = connection.execute("show transaction_isolation").fetchone()[0]
        read_only = connection.execute("show transaction_read_only").fetchone()[0]
        return isolation, read_only, connection.info.backend_pid

    plain = warm_connection(seen)
    strict = warm_connection(isolation_level=IsolationLevel.SERIALIZABLE, read_only=True)(seen)
    first, second, third = plain({}, Context()), strict({}, Context()), plain({}, Context())
    assert first[:2] == third[:2] == ("read committed", "off")
    assert second[:2] == ("serializable", "on")
    assert first[2] == second[2] == third[2]


def test_without_a_transaction_each_statement_is_kept(environment: Environment, admin: Admin) -> None:
    """transaction=False gives an autocommit connection, and the next handler has its transaction again."""

    @warm_connection(transaction=False)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])
        raise KeyError(event)

    @warm_connection
    def transactional(event: object, context: object, connection: psycopg.Connection) -> bool:
        return connection.autocommit

    with pytest.raises(KeyError):
        handler("kept", Context())
    assert ledger(admin) == ["kept"]
    assert transactional({}, Context()) is False


def test_named_database_has_its_own_connection(
    environment: Environment, database: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """database="replica" reads EMBERPOOL_REPLICA_HOST and falls back to the other variables."""
    monkeypatch.setenv("EMBERPOOL_REPLICA_HOST", "localhost")
    monkeypatch.setenv("EMBERPOOL_REPLICA_DATABASE", DATABASE)

    @warm_connection(database="replica", read_only=True)
    def report(event: object, context: object, connection: psycopg.Connection) -> tuple[str, int]:
        assert current_connection("replica") is connection
        return connection.info.host, connection.info.backend_pid

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> tuple[tuple[str, int], int]:
        return report({}, context), connection.info.backend_pid

    (host, replica_pid), pid = handler({}, Context())
    assert host == "localhost"
    assert replica_pid != pid


def test_named_database_without_a_host_is_a_clear_error(environment: Environment) -> None:
    """A database that was never configured names the variable that is missing."""
    with pytest.raises(SettingsInvalid, match="EMBERPOOL_ARCHIVE_HOST"):

        @warm_connection(database="archive")
        def handler(event: object, context: object, connection: psycopg.Connection) -> None: ...
