"""SQLAlchemy's Engine on the warm connection: there is one, it is alive, and nobody shares it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from emberpool import (
    ConnectionInUse,
    ConnectionUnavailable,
    declared,
    warm_connection,
)
from emberpool import settings as names
from emberpool.sqlalchemy import engine as engine_on
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.stack import LocalStack

from ..conftest import Admin, Context, Environment, ledger, terminate
from .conftest import Entry, pid_of

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
