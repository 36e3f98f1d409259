"""The decorator's options and what they promise, against a real PostgreSQL."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from psycopg import IsolationLevel

from emberpool import (
    CommitOutcomeUnknown,
    ConnectionUnavailable,
    DeadlineTooClose,
    NotCommitted,
    OutsideInvocation,
    SettingsInvalid,
    current_connection,
    declared,
    warm_connection,
)
from emberpool import (
    settings as names,
)
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import DATABASE, Context

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]


def ledger(admin: Admin) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def terminate(admin: Admin, connection: psycopg.Connection[Any]) -> None:
    admin.execute("select pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


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


# --- the deadline


def test_every_transaction_of_the_handler_has_the_timeout(environment: Environment, admin: Admin) -> None:
    """After a commit of its own, and in `transaction()` blocks, a handler's statements are still bounded."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> list[int]:
        found = []
        for _ in range(2):
            found.append(timeout_ms(connection))
            connection.commit()
        connection.autocommit = True
        with connection.transaction():
            found.append(timeout_ms(connection))
        with connection.pipeline():
            connection.autocommit = False
            found.append(timeout_ms(connection))
        return found

    assert all(1_000 < found <= 9_800 for found in handler({}, Context(remaining_ms=10_000)))


def timeout_ms(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select setting::int from pg_settings where name = 'statement_timeout'").fetchone()
    return row[0]


@pytest.mark.parametrize("transaction", [True, False])
def test_late_statement_is_cancelled_by_the_watchdog(environment: Environment, admin: Admin, transaction: bool) -> None:
    """A statement that comes late in its invocation, or outside of a transaction, still ends before the margin."""

    @warm_connection(transaction=transaction)
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        connection.execute("set local statement_timeout = 0" if transaction else "select 1")
        connection.execute("select pg_sleep(30) /* late */")

    with pytest.raises(psycopg.errors.QueryCanceled):
        handler({}, Context(remaining_ms=900))
    running = admin.execute(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%late%' "
        "and pid <> pg_backend_pid()"
    )
    assert running.fetchone() == (0,)


def test_statement_after_the_deadline_is_not_sent(environment: Environment, admin: Admin) -> None:
    """When the margin has begun, another statement raises DeadlineTooClose instead of being cut in half."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values ('first')")
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            pass
        connection.execute("insert into ledger values ('too late')")

    with pytest.raises(DeadlineTooClose, match="was not sent"):
        handler({}, Context(remaining_ms=500))
    assert ledger(admin) == []


def test_watchdog_never_cancels_the_next_invocation(environment: Environment, admin: Admin) -> None:
    """After an invocation that came near its deadline, the next one's statements run undisturbed."""

    @warm_connection
    def handler(event: float, context: object, connection: psycopg.Connection) -> float:
        connection.execute("select pg_sleep(%s)", [event])
        return event

    for _ in range(5):
        handler(0.05, Context(remaining_ms=290))
        assert handler(0.15, Context(remaining_ms=30_000)) == 0.15


# --- repeating


def test_idempotent_handler_runs_once_more_after_a_lost_connection(environment: Environment, admin: Admin) -> None:
    """idempotent=True repeats the whole handler once; its first attempt left nothing."""
    attempts = []

    @warm_connection(idempotent=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("insert into ledger values (%s)", [event])
        if len(attempts) == 1:
            terminate(admin, connection)
            connection.execute("select 1")

    handler("a", Context())
    assert attempts == ["a", "a"]
    assert ledger(admin) == ["a"]


def test_idempotent_handler_is_repeated_at_most_once(environment: Environment, admin: Admin) -> None:
    """A loss in the second attempt reaches the caller."""
    attempts = []

    @warm_connection(idempotent=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        terminate(admin, connection)
        connection.execute("select 1")

    with pytest.raises(psycopg.OperationalError):
        handler("a", Context())
    assert attempts == ["a", "a"]


def test_other_errors_are_never_repeated(environment: Environment, admin: Admin) -> None:
    """An idempotent handler that fails by itself is not run again, and nor is any handler that is not idempotent."""
    attempts = []

    @warm_connection(idempotent=True)
    def wrong(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("select 1/0")

    @warm_connection
    def lost(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        terminate(admin, connection)
        connection.execute("select 1")

    with pytest.raises(psycopg.errors.DivisionByZero):
        wrong("wrong", Context())
    with pytest.raises(psycopg.OperationalError):
        lost("lost", Context())
    assert attempts == ["wrong", "lost"]


def test_serialization_failure_of_an_idempotent_handler_is_repeated(environment: Environment, admin: Admin) -> None:
    """Two serializable transactions that conflict: the one that loses runs once more and succeeds."""
    admin.execute("insert into ledger values ('seed')")
    attempts = []

    @warm_connection(idempotent=True, isolation_level=IsolationLevel.REPEATABLE_READ)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("select count(*) from ledger")
        if len(attempts) == 1:
            admin.execute("update ledger set id = 'changed' where id = 'seed'")
        connection.execute("update ledger set id = %s", [event])

    handler("won", Context())
    assert len(attempts) == 2
    assert ledger(admin) == ["won"]


# --- the outcome of a commit


@pytest.fixture
def die_at_commit(admin: Admin) -> Iterator[None]:
    """COMMIT of a row 'aborts' ends the backend before it is committed; of 'commits', just after, by a cut socket."""
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


def test_resolved_commit_that_was_aborted_says_not_committed(
    environment: Environment, admin: Admin, die_at_commit: None
) -> None:
    """resolve_commit=True asks the database: nothing was committed, so the invocation may be repeated."""

    @warm_connection(resolve_commit=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])

    with pytest.raises(NotCommitted):
        handler("aborts", Context())
    handler("lives", Context())
    assert ledger(admin) == ["lives"]


def test_resolved_commit_that_was_committed_is_a_success(
    environment: Environment, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the answer to COMMIT is lost but it was committed, resolve_commit=True returns as if nothing had been."""
    cut_after_commit(monkeypatch)

    @warm_connection(resolve_commit=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        connection.execute("insert into ledger values (%s)", [event])
        return event

    assert handler("a", Context()) == "a"
    assert ledger(admin) == ["a"]


def test_unresolved_commit_stays_unknown(
    environment: Environment, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option the same loss is an unknown outcome, though it was committed."""
    cut_after_commit(monkeypatch)

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])

    with pytest.raises(CommitOutcomeUnknown):
        handler("a", Context())
    assert ledger(admin) == ["a"]


def cut_after_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose the connection between the server's commit and its answer: the socket is shut down under libpq."""
    import os
    import socket

    from emberpool.session import SessionConnection

    original = SessionConnection.commit

    def commit(self: SessionConnection) -> None:
        if self.read_only:
            return original(self)
        self.pgconn.send_query(b"COMMIT")
        self.pgconn.flush()
        time.sleep(0.3)  # the server has committed by now; its answer is in our socket's buffer
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as wire:
            wire.recv(65536)
            wire.shutdown(socket.SHUT_RDWR)
        self.pgconn.consume_input()
        return None

    monkeypatch.setattr(SessionConnection, "commit", commit)


# --- opening


def test_full_database_is_tried_again_within_bounds(environment: Environment, admin: Admin) -> None:
    """A connection refused for too many clients is tried again until there is room."""
    admin.execute("alter role layer_user connection limit 0")
    room = threading.Timer(0.5, admin.execute, ["alter role layer_user connection limit -1"])
    room.start()

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> int:
        return connection.execute("select 1").fetchone()[0]

    try:
        assert handler({}, Context()) == 1
    finally:
        room.join()


def test_trying_again_ends(environment: Environment, admin: Admin) -> None:
    """A database that stays full is a clear error once EMBERPOOL_CONNECT_RETRY_SECONDS are over."""
    environment(EMBERPOOL_CONNECT_RETRY_SECONDS="0.3")
    admin.execute("alter role layer_user connection limit 0")

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        pytest.fail("must not run")

    try:
        with pytest.raises(ConnectionUnavailable, match="too many connections for role"):
            handler({}, Context())
    finally:
        admin.execute("alter role layer_user connection limit -1")


def test_connection_is_opened_while_the_module_loads(
    environment: Environment, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Lambda the decorator opens the connection in the background, and the first invocation uses that one."""
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> int:
        return connection.info.backend_pid

    warm = declared.shared_connection(names.LayerSettings.from_environment())
    until = time.monotonic() + 10
    while not warm.is_open:
        assert time.monotonic() < until, "the connection was not opened before the first invocation"
        time.sleep(0.01)
    prewarmed = warm._connection.info.backend_pid
    assert handler({}, Context()) == prewarmed


# --- session state


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("set search_path = public", "SET"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
        ("select set_config('search_path', 'public', false)", "set_config"),
        ("listen orders", "LISTEN"),
        ("prepare q as select 1", "PREPARE"),
        ("select pg_advisory_lock(1)", "session advisory lock"),
        ("declare c cursor with hold for select 1", "WITH HOLD"),
        ("create temp table t (i int)", "temporary table"),
    ],
)
def test_session_state_is_warned_of_once(
    environment: Environment, caplog: pytest.LogCaptureFixture, statement: str, kind: str
) -> None:
    """A statement that leaves something behind in the session is named in one warning per environment."""
    from emberpool import telemetry

    telemetry._recorder._warned.clear()

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        connection.execute(statement)
        connection.rollback()
        connection.execute("deallocate all")  # what PREPARE left behind is not rolled back

    with caplog.at_level(logging.WARNING):
        handler({}, Context())
        handler({}, Context())
    warnings = [record.getMessage() for record in caplog.records if "transaction pooling" in record.getMessage()]
    assert len(warnings) == 1
    assert kind in json.dumps(warnings)


@pytest.mark.parametrize(
    "statement",
    [
        "set local search_path = public",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "set timezone = 'UTC'",
        "set application_name = 'mine'",
        "select pg_advisory_xact_lock(1)",
        "create temp table t (i int) on commit drop",
        "select 'set search_path'",
        "update settings set value = 1 where false",
    ],
)
def test_safe_statements_are_not_warned_of(statement: str) -> None:
    """What ends with the transaction, or what the pool keeps in step, is not a hazard."""
    from emberpool.session_state import hazard_of

    assert hazard_of(statement) is None


def test_watchdog_looks_again_for_a_statement_that_began_after_its_first_look() -> None:
    """A statement that starts between the watchdog's look and the margin is still found, until it is disarmed."""
    from emberpool.watchdog import Watchdog

    watchdog, looks, enough = Watchdog(), [], threading.Event()

    def look() -> None:
        looks.append(time.time())
        if len(looks) == 3:
            enough.set()

    watchdog.arm(time.time() + 0.05, look)
    assert enough.wait(10)
    watchdog.disarm()
    seen = len(looks)
    time.sleep(0.1)
    assert len(looks) == seen
