"""An engine over several invocations: which errors repeat an idempotent handler, and what stays on the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import IsolationLevel
from sqlalchemy import text

from emberpool import current_connection, warm_connection

from ..conftest import Admin, Context, ledger, terminate

NOTICE = text("do $$ begin raise notice 'said once'; end $$")


def lose_connection(connection: sqlalchemy.Connection, admin: Admin) -> None:
    terminate(admin, connection.scalar(text("select pg_backend_pid()")))
    connection.execute(text("select 1"))


def lose_to_another_update(connection: sqlalchemy.Connection, admin: Admin) -> None:
    connection.execute(text("select count(*) from ledger"))
    admin.execute("update ledger set id = 'changed' where id = 'seed'")
    connection.execute(text("update ledger set id = 'mine' where id <> 'new'"))


class OrderError(Exception):
    """A user's own error around SQLAlchemy's."""


def lose_and_wrap(connection: sqlalchemy.Connection, admin: Admin) -> None:
    try:
        lose_connection(connection, admin)
    except sqlalchemy.exc.DBAPIError as error:
        raise OrderError from error


@pytest.mark.parametrize("lose", [lose_connection, lose_to_another_update, lose_and_wrap])
def test_loss_that_sqlalchemy_reports_repeats_an_idempotent_handler(
    engine: sqlalchemy.Engine, admin: Admin, lose: Callable[[sqlalchemy.Connection, Admin], None]
) -> None:
    """A lost connection or a serialization failure is known inside SQLAlchemy's error: the handler runs once more."""
    admin.execute("insert into ledger values ('seed')")
    attempts = []

    @warm_connection(transaction=False, idempotent=True, isolation_level=IsolationLevel.REPEATABLE_READ)
    def handler(event: str, context: object) -> None:
        attempts.append(event)
        with engine.begin() as connection:
            connection.execute(text("insert into ledger values (:id)"), {"id": event})
            if len(attempts) == 1:
                lose(connection, admin)

    handler("new", Context())
    assert attempts == ["new", "new"]
    assert "new" in ledger(admin)


def test_other_errors_of_sqlalchemy_are_never_repeated(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A statement that is wrong, and an error that came of nothing in the database, run the handler once."""
    attempts = []

    @warm_connection(transaction=False, idempotent=True)
    def handler(event: str, context: object) -> None:
        attempts.append(event)
        with engine.begin() as connection:
            connection.execute(text(event))
            raise OrderError

    with pytest.raises(sqlalchemy.exc.DataError):
        handler("select 1/0", Context())
    with pytest.raises(OrderError):
        handler("select 1", Context())
    assert attempts == ["select 1/0", "select 1"]


def test_sqlalchemy_logs_notices_in_every_invocation(
    engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """What SQLAlchemy registers once for a connection stays: notices reach its logger in later invocations, too."""

    @warm_connection(transaction=False)
    def handler(event: object, context: object) -> None:
        with engine.begin() as connection:
            connection.execute(NOTICE)

    with caplog.at_level(logging.INFO, logger="sqlalchemy.dialects.postgresql"):
        for count in (1, 2, 3):
            handler({}, Context())
            assert caplog.text.count("said once") == count


def test_handlers_own_notice_handler_ends_with_its_invocation(engine: sqlalchemy.Engine) -> None:
    """Beside SQLAlchemy's a handler's own is kept for this invocation only."""
    heard: list[str | None] = []

    @warm_connection(transaction=False)
    def handler(event: bool, context: object) -> None:
        if event:
            current_connection().add_notice_handler(lambda notice: heard.append(notice.message_primary))
        with engine.begin() as connection:
            connection.execute(NOTICE)

    handler(False, Context())  # SQLAlchemy's is there already
    handler(True, Context())
    handler(False, Context())
    assert heard == ["said once"]


def test_engine_that_is_disposed_of_does_not_multiply_its_notices(
    engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside a handler dispose() keeps the connection, and SQLAlchemy sets it up again: a notice is logged once."""

    @warm_connection(transaction=False)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        for _ in range(3):
            engine.dispose()
            with engine.begin() as begun:
                begun.execute(text("select 1"))
        with engine.begin() as begun:
            begun.execute(NOTICE)

    with caplog.at_level(logging.INFO, logger="sqlalchemy.dialects.postgresql"):
        handler({}, Context())
    assert caplog.text.count("said once") == 1
