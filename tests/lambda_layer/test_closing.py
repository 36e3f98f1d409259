"""A handler that closes the connection itself: what of its work is kept, and what it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from emberpool import telemetry, warm_connection

from .conftest import Admin, Context, Environment, ledger

Connection = psycopg.Connection[Any]
KIND = "connection_closed_in_transaction"


def handler_that(close: Callable[[Connection], None]) -> Callable[..., None]:
    @warm_connection
    def handler(event: str, context: object, connection: Connection) -> None:
        close(connection)

    return handler


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [json.loads(record.getMessage()) for record in caplog.records if record.levelno == logging.WARNING]
    return [warning["message"] for warning in found if warning["emberpool"] == KIND]


def insert_and_close(connection: Connection) -> None:
    connection.execute("insert into ledger values ('lost')")
    connection.close()


def test_close_inside_the_transaction_is_warned_of_once(
    environment: Environment, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that closes instead of committing loses its work: one warning says so, and what to do."""
    telemetry._recorder._warned.clear()
    handler = handler_that(insert_and_close)
    handler("a", Context())
    handler("a", Context())
    [warning] = warnings(caplog)
    assert "rolled back" in warning
    assert "leave out connection.close()" in warning
    assert ledger(admin) == []


def insert_in_with(connection: Connection) -> None:
    with connection:
        connection.execute("insert into ledger values ('kept')")


def commit_and_close(connection: Connection) -> None:
    connection.execute("insert into ledger values ('kept')")
    connection.commit()
    connection.close()


def close_at_once(connection: Connection) -> None:
    connection.close()


@pytest.mark.parametrize(
    ("close", "kept"), [(insert_in_with, ["kept"]), (commit_and_close, ["kept"]), (close_at_once, [])]
)
def test_close_that_loses_nothing_is_not_warned_of(
    environment: Environment,
    admin: Admin,
    caplog: pytest.LogCaptureFixture,
    close: Callable[[Connection], None],
    kept: list[str],
) -> None:
    """`with connection:`, a commit before the close, and a close without any statement keep what there was."""
    telemetry._recorder._warned.clear()
    handler_that(close)("a", Context())
    assert warnings(caplog) == []
    assert ledger(admin) == kept


def test_close_on_the_way_of_an_exception_is_not_warned_of(
    environment: Environment, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises is rolled back in any case, and its own exception says enough."""
    telemetry._recorder._warned.clear()

    def close(connection: Connection) -> None:
        insert_and_close(connection)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        handler_that(close)("a", Context())
    assert warnings(caplog) == []
