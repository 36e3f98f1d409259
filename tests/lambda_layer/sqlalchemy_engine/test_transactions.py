"""SQLAlchemy's Engine on the warm connection: its transactions, outside and inside of handlers."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from emberpool import (
    ConnectionInUse,
    DeadlineTooClose,
    TransactionAborted,
    current_connection,
    warm_connection,
)
from emberpool.sqlalchemy import engine as engine_on

from ..conftest import Admin, Context, Environment, ledger, terminate
from .conftest import Entry, pid_of

# --- transactions


def test_begin_commits_and_rolls_back(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """engine.begin() commits at the end of its block and rolls back when the block raises."""
    with engine.begin() as connection:
        connection.execute(sqlalchemy.insert(Entry).values(id="kept"))
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:  # noqa: PT012 (the block is the test)
        connection.execute(sqlalchemy.insert(Entry).values(id="undone"))
        raise ZeroDivisionError
    assert ledger(admin) == ["kept"]


def test_close_without_commit_rolls_back_and_keeps_the_connection(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """Closing a SQLAlchemy connection rolls back what is open; the warm connection stays open for the next one."""
    with engine.connect() as connection:
        connection.execute(text("insert into ledger values ('undone')"))
        pid = connection.scalar(text("select pg_backend_pid()"))
    assert pid_of(engine) == pid
    assert ledger(admin) == []


def test_session_with_savepoints(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A nested transaction that fails is undone alone; the Session's commit keeps the rest."""
    with Session(engine) as session:
        session.add(Entry(id="outer"))
        session.flush()
        with pytest.raises(sqlalchemy.exc.IntegrityError), session.begin_nested():
            session.execute(sqlalchemy.insert(Entry).values(id="outer"))
        with session.begin_nested():
            session.add(Entry(id="inner"))
        session.commit()
        assert session.scalars(select(Entry.id).order_by(Entry.id)).all() == ["inner", "outer"]
    assert ledger(admin) == ["inner", "outer"]


@pytest.mark.parametrize("options", [{}, {"isolation_level": "REPEATABLE READ"}], ids=["plain", "with options"])
def test_swallowed_failure_is_not_taken_for_a_commit(
    environment: Environment, admin: Admin, options: dict[str, Any]
) -> None:
    """A block that goes on after a failed statement gets TransactionAborted: its work is not silently lost."""
    engine = engine_on(**options)
    with pytest.raises(TransactionAborted), engine.begin() as connection:  # noqa: PT012 (the block is the test)
        connection.execute(text("insert into ledger values ('undone')"))
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            connection.execute(text("select * from nowhere"))
    with engine.begin() as connection:
        connection.execute(text("insert into ledger values ('kept')"))
    assert ledger(admin) == ["kept"]


def test_isolation_level_of_the_engine_holds_for_every_checkout(environment: Environment, admin: Admin) -> None:
    """An engine's isolation_level holds again after others have used the connection, and does not stay behind."""
    engine = engine_on(isolation_level="SERIALIZABLE")
    show = text("show transaction_isolation")
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(show) == "serializable"
        with engine_on().connect() as connection:
            assert connection.scalar(show) == "read committed"


def test_autocommit_ends_with_its_checkout(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A connection with isolation level AUTOCOMMIT commits each statement; the next one has transactions again."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("insert into ledger values ('at once')"))
    with engine.connect() as connection:
        connection.execute(text("insert into ledger values ('undone')"))
    assert ledger(admin) == ["at once"]


def test_several_statements_in_one_text(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A text with several statements runs, as it does on SQLAlchemy's own connections."""
    for number in range(2):
        with engine.begin() as connection:
            connection.execute(
                text(f"insert into ledger values ('a{number}'); insert into ledger values ('b{number}')")
            )
    assert ledger(admin) == ["a0", "a1", "b0", "b1"]


# --- inside of handlers


def test_handler_and_engine_share_one_connection(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """Engine and @warm_connection(transaction=False) use the same server connection over warm invocations."""

    @warm_connection(transaction=False)
    def handler(event: str, context: object, connection: psycopg.Connection[Any]) -> set[int]:
        with Session(engine) as session, session.begin():
            session.add(Entry(id=event))
            pids = {session.scalar(text("select pg_backend_pid()"))}
        assert ledger(admin)[-1] == event  # committed now, not at the handler's end
        assert connection.autocommit
        return pids | {connection.info.backend_pid}

    assert len(handler("a", Context()) | handler("b", Context())) == 1


def test_handler_with_its_own_transaction_is_refused(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """Inside of @warm_connection the engine says what to do, and the handler's transaction is as good as before."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        connection.execute("insert into ledger values ('before')")
        with pytest.raises(ConnectionInUse, match=r"transaction=False"), engine.begin():
            pass
        connection.execute("insert into ledger values ('after')")

    for _ in range(2):
        admin.execute("truncate ledger")
        handler({}, Context())
        assert ledger(admin) == ["after", "before"]


def test_handler_without_a_statement_yet_is_refused_too(engine: sqlalchemy.Engine) -> None:
    """The refusal does not depend on whether the handler's transaction has reached the database."""

    @warm_connection
    def handler(event: object, context: object) -> None:
        with pytest.raises(ConnectionInUse):
            engine.connect()

    for _ in range(3):
        handler({}, Context())


def test_open_transaction_block_of_the_handler_is_refused(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A `with connection.transaction()` of an autocommit handler is not mixed with SQLAlchemy's."""

    @warm_connection(transaction=False)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute("insert into ledger values ('own')")
            with pytest.raises(ConnectionInUse), engine.begin():
                pass

    handler({}, Context())
    assert ledger(admin) == ["own"]


def test_options_of_the_handler_hold_for_the_engines_transactions(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """read_only and isolation_level of an autocommit handler are those of SQLAlchemy's transactions inside of it."""
    level = psycopg.IsolationLevel.REPEATABLE_READ

    @warm_connection(transaction=False, read_only=True, isolation_level=level)
    def handler(event: bool, context: object, connection: psycopg.Connection[Any]) -> list[str]:
        if event:
            terminate(admin, connection.info.backend_pid)
        with engine.connect() as checked_out:
            return [checked_out.scalar(text(f"show transaction_{name}")) for name in ("isolation", "read_only")]

    assert [handler(is_replaced, Context()) for is_replaced in (False, True, False)] == [["repeatable read", "on"]] * 3
    with engine.connect() as connection:
        assert connection.scalar(text("show transaction_read_only")) == "off"


def test_statements_end_with_the_invocation(engine: sqlalchemy.Engine) -> None:
    """A statement gets the invocation's remaining time, in a transaction and in AUTOCOMMIT; then none is sent."""

    @warm_connection(transaction=False, deadline_margin_ms=1_000)
    def handler(event: str, context: object) -> None:
        with engine.connect().execution_options(isolation_level=event) as connection:
            with pytest.raises(OperationalError) as caught:
                connection.execute(text("select pg_sleep(20)"))
            assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)
            while isinstance(caught.value.orig, psycopg.errors.QueryCanceled):  # the watchdog looks again for the next
                connection.rollback()
                with pytest.raises(OperationalError) as caught:  # noqa: PT012 (which of them is too late depends)
                    while True:
                        connection.execute(text("select 1"))
            assert isinstance(caught.value.orig, DeadlineTooClose)

    for level in ("READ COMMITTED", "AUTOCOMMIT"):
        pid_of(engine)  # what an engine asks once is not within the deadline
        handler(level, Context(remaining_ms=1_300))
    assert pid_of(engine)  # no deadline outside


def test_late_statement_of_a_replaced_connection_is_cancelled(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """After the connection was replaced in the middle of an invocation, its watchdog minds the new one."""

    @warm_connection(transaction=False, deadline_margin_ms=1_000)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        terminate(admin, connection.info.backend_pid)
        with engine.connect() as replaced:
            assert current_connection() is replaced.connection.driver_connection
            replaced.execute(text("set local statement_timeout = 0"))
            with pytest.raises(OperationalError, match="user request"):
                replaced.execute(text("select pg_sleep(20)"))
        assert current_connection().autocommit

    pid_of(engine)
    handler({}, Context(remaining_ms=3_000))
