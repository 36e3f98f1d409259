"""SQLAlchemy's Engine on the warm connection, against a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from emberpool import (
    ConnectionInUse,
    ConnectionUnavailable,
    DeadlineTooClose,
    TransactionAborted,
    current_connection,
    declared,
    warm_connection,
)
from emberpool import settings as names
from emberpool.sqlalchemy import engine as engine_on
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.stack import LocalStack

from .conftest import Context

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "ledger"
    id: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine(environment: Environment) -> Iterator[sqlalchemy.Engine]:
    made = engine_on()
    yield made
    made.dispose()


def ledger(admin: Admin) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def pid_of(engine: sqlalchemy.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("select pg_backend_pid()"))


def terminate(admin: Admin, pid: int) -> None:
    admin.execute("select pg_terminate_backend(%s, 5000)", [pid])


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

    @warm_connection(transaction=False, deadline_margin_ms=0)
    def handler(event: str, context: object) -> None:
        with engine.connect().execution_options(isolation_level=event) as connection:
            with pytest.raises(OperationalError) as caught:
                connection.execute(text("select pg_sleep(20)"))
            assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)
            connection.rollback()
            with pytest.raises(OperationalError) as caught:  # noqa: PT012 (which of them is too late depends)
                while True:
                    connection.execute(text("select 1"))
            assert isinstance(caught.value.orig, DeadlineTooClose)

    for level in ("READ COMMITTED", "AUTOCOMMIT"):
        pid_of(engine)  # what an engine asks once is not within the deadline
        handler(level, Context(remaining_ms=300))
    assert pid_of(engine)  # no deadline outside


def test_late_statement_of_a_replaced_connection_is_cancelled(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """After the connection was replaced in the middle of an invocation, its watchdog minds the new one."""

    @warm_connection(transaction=False, deadline_margin_ms=0)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        terminate(admin, connection.info.backend_pid)
        with engine.connect() as replaced:
            assert current_connection() is replaced.connection.driver_connection
            replaced.execute(text("set local statement_timeout = 0"))
            with pytest.raises(OperationalError, match="user request"):
                replaced.execute(text("select pg_sleep(20)"))
        assert current_connection().autocommit

    pid_of(engine)
    handler({}, Context(remaining_ms=1_000))


# --- dead connections


def test_dead_connection_is_replaced_at_checkout(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A connection that was terminated while it rested is replaced before SQLAlchemy sees it."""
    before = pid_of(engine)
    terminate(admin, before)
    assert pid_of(engine) != before


def test_checkout_costs_no_round_trip(engine: sqlalchemy.Engine, tmp_path: Path) -> None:
    """A warm engine.begin() with one statement is BEGIN, statement, COMMIT: three synchronisations with the server."""
    pid_of(engine)
    warm = declared.shared_connection(names.LayerSettings.from_environment())
    connection = warm._connection
    assert connection is not None
    trace = tmp_path / "trace"
    with trace.open("wb") as file:
        connection.pgconn.trace(file.fileno())
        with engine.begin() as checked_out:
            checked_out.execute(text("select 1"))
        connection.pgconn.untrace()
    assert sum("ReadyForQuery" in line for line in trace.read_text().splitlines()) == 3


def test_connection_lost_in_a_transaction_is_replaced_for_the_next(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A lost connection is SQLAlchemy's OperationalError with connection_invalidated; nothing is repeated."""
    with engine.connect() as connection:
        connection.execute(text("insert into ledger values ('lost')"))
        terminate(admin, connection.scalar(text("select pg_backend_pid()")))
        with pytest.raises(OperationalError) as caught:
            connection.execute(text("select 1"))
    assert caught.value.connection_invalidated
    with engine.begin() as connection:
        connection.execute(text("insert into ledger values ('kept')"))
    assert ledger(admin) == ["kept"]


def test_unreachable_database_is_an_operational_error(environment: Environment) -> None:
    """SQLAlchemy's users catch its OperationalError; the layer's error is the cause."""
    environment(**{names.PORT: "1", names.CONNECT_RETRY_SECONDS: "0"})
    with pytest.raises(OperationalError) as caught:
        engine_on().connect()
    assert isinstance(caught.value.orig, ConnectionUnavailable)


# --- one connection


def test_second_checkout_is_an_error_and_not_a_wait(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """While it is checked out nobody else gets the connection: no engine, no other thread, no handler."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None:
        pytest.fail("ran on a connection that is checked out")

    raised: list[BaseException] = []

    def in_a_thread() -> None:
        with pytest.raises(ConnectionInUse) as caught:
            engine.connect()
        raised.append(caught.value)

    with engine.begin() as connection:
        connection.execute(text("insert into ledger values ('kept')"))
        for other in (engine, engine_on()):
            with pytest.raises(ConnectionInUse, match="checked out"):
                other.connect()
        with pytest.raises(ConnectionInUse):
            handler({}, Context())
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
    assert len(raised) == 1
    assert ledger(admin) == ["kept"]
    assert pid_of(engine)


def test_connection_left_checked_out_does_not_reach_the_next_invocation(
    engine: sqlalchemy.Engine, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """A Session that a handler never closed is rolled back with its connection, and the environment lives on."""
    left: list[Session] = []

    @warm_connection(transaction=False)
    def handler(event: str, context: object) -> None:
        session = Session(engine)
        left.append(session)
        session.add(Entry(id=event))
        session.flush()
        if event == "committed":
            session.commit()

    for event_ in ("left", "committed", "left too"):
        handler(event_, Context())
    assert ledger(admin) == ["committed"]
    assert "connection_left_checked_out" in caplog.text
    for session in left:
        session.invalidate()
    assert pid_of(engine)


def test_connect_listeners_run_once_for_each_connection(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A "connect" listener runs for a connection that is new to the engine, as with any pool of SQLAlchemy's."""
    seen: list[Any] = []
    event.listen(engine, "connect", lambda connection, record: seen.append(connection))
    first = [pid_of(engine), pid_of(engine)]
    assert len(seen) == 1
    terminate(admin, first[0])
    pid_of(engine)
    assert len(seen) == 2


def test_listener_that_raises_leaves_a_usable_engine(engine: sqlalchemy.Engine) -> None:
    """After a failed "connect" listener the next checkout succeeds."""

    def fail(connection: object, record: object) -> None:
        raise ZeroDivisionError

    event.listen(engine, "connect", fail)
    with pytest.raises(ZeroDivisionError):
        engine.connect()
    event.remove(engine, "connect", fail)
    assert pid_of(engine)


def test_types_of_the_engine_stay_with_the_engine(environment: Environment) -> None:
    """An engine's own JSON functions hold for its checkouts, and psycopg's for a handler's connection."""
    engine = engine_on(json_deserializer=lambda raw: ["mine", json.loads(raw)])

    @warm_connection(transaction=False)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> list[Any]:
        with engine.connect() as checked_out:
            first = checked_out.scalar(text("select '1'::jsonb"))
        return [first, connection.execute("select '1'::jsonb").fetchone()[0]]

    for _ in range(2):
        assert handler({}, Context()) == [["mine", 1], 1]


def test_row_factory_of_the_handler_stays_with_the_handler(engine: sqlalchemy.Engine) -> None:
    """A handler that wants dictionaries does not break SQLAlchemy, which counts on tuples, and keeps them."""

    @warm_connection(transaction=False)
    def handler(event: object, context: object, connection: Any) -> list[Any]:
        connection.row_factory = dict_row
        with engine.connect() as checked_out:
            first = checked_out.execute(text("select 1 as a, 2 as b")).one()
        return [tuple(first), connection.execute("select 1 as a").fetchone()]

    assert handler({}, Context()) == [(1, 2), {"a": 1}]


def test_invalidate_detach_and_dispose(engine: sqlalchemy.Engine) -> None:
    """invalidate() and dispose() close the connection, detach() gives it away; each time the engine opens another."""
    pids = [pid_of(engine)]
    with engine.connect() as connection:
        connection.invalidate()
    pids.append(pid_of(engine))
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is not None
        connection.connection.invalidate(soft=True)
    pids.append(pid_of(engine))
    engine.dispose()
    pids.append(pid_of(engine))
    with engine.connect() as connection:
        connection.detach()
        with pytest.raises(ConnectionInUse):
            engine.connect()
    pids.append(pid_of(engine))
    assert len(set(pids)) == 5


def test_dispose_inside_of_an_invocation_leaves_the_handlers_connection(engine: sqlalchemy.Engine) -> None:
    """The handler's connection survives a dispose() of the engine beside it."""

    @warm_connection(transaction=False)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> int:
        pid_of(engine)
        engine.dispose()
        assert pid_of(engine) == connection.info.backend_pid
        return connection.execute("select 1").fetchone()[0]

    assert handler({}, Context()) == 1


def test_pool_options_are_refused(environment: Environment) -> None:
    """There is nothing to size or to recycle in a pool of one connection that the layer keeps."""
    with pytest.raises(TypeError, match="pool_size"):
        engine_on(pool_size=5)


@pytest.mark.parametrize("is_checked_out", [False, True], ids=["idle", "checked out"])
def test_forked_child_never_uses_its_parents_socket(
    engine: sqlalchemy.Engine, admin: Admin, is_checked_out: bool
) -> None:
    """A child gets a connection of its own; the parent's transaction goes on as if nothing had been."""
    parent_pid = pid_of(engine)
    with engine.connect() as connection:
        if is_checked_out:
            connection.execute(text("insert into ledger values ('parent')"))
        else:
            connection.close()
        child = os.fork()
        if child == 0:  # pragma: no cover
            code = 1
            try:
                with contextlib.suppress(OperationalError):
                    connection.close()  # would roll the parent back
                code = 0 if pid_of(engine) not in {0, parent_pid} else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if is_checked_out:
            connection.commit()
    assert pid_of(engine) == parent_pid
    assert ledger(admin) == (["parent"] if is_checked_out else [])


# --- through the proxy

FUNCTION = """
from sqlalchemy import text
from emberpool import warm_connection
from emberpool.sqlalchemy import engine

orders = engine()

@warm_connection(transaction=False)
def handler(event, context, connection):
    with orders.begin() as transaction:
        transaction.execute(text("insert into ledger values (:id)"), {"id": event["id"]})
    return connection.info.backend_pid
"""


async def test_engine_works_through_the_proxy(tmp_path: Path) -> None:
    """Twenty invocations of four environments commit through PgBouncer, each environment on one client connection."""
    (tmp_path / "function.py").write_text(FUNCTION)
    with LocalStack(max_connections=10, max_server_connections=2) as stack:
        with psycopg.connect(stack.direct_conninfo) as connection:
            connection.execute("create table ledger (id text primary key)")
        environment = stack.handler_environment()
        async with Fleet("function:handler", tmp_path, environment, function_name="alchemy") as fleet:
            await fleet.scale_out(4)
            for number in range(20):
                outcome = await fleet.invoke(json.dumps({"id": f"{number:02}"}).encode())
                assert outcome.status == "succeeded", f"{outcome.error_message}\n{outcome.log}"
        with psycopg.connect(stack.direct_conninfo) as connection:
            assert connection.execute("select count(*) from ledger").fetchone() == (20,)
