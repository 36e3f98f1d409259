"""The decorator against a real PostgreSQL: reuse, replacement, one transaction per invocation."""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Callable

import psycopg
import pytest

from emberpool import (
    CommitOutcomeUnknown,
    ConnectionUnavailable,
    DeadlineTooClose,
    SettingsInvalid,
    TransactionAborted,
    declared,
    warm_connection,
)
from emberpool import (
    settings as names,
)
from emberpool.connection import WarmConnection

from .conftest import Context

Environment = Callable[..., None]


def ledger(admin: psycopg.Connection) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def warm() -> WarmConnection:
    return declared.shared_connection(names.LayerSettings.from_environment())


def test_warm_invocations_share_one_connection(backend_pid: Callable[..., int]) -> None:
    """Ten invocations of one environment use one server connection."""
    assert len({backend_pid({}, Context()) for _ in range(10)}) == 1


def test_decorator_works_with_and_without_parentheses_and_keeps_the_name(environment: Environment) -> None:
    """Both spellings give a two-argument handler that keeps the wrapped function's metadata."""

    def place_order(event: int, context: object, connection: psycopg.Connection) -> int:
        """Doc of the handler."""
        return event + connection.execute("select 1").fetchone()[0]

    for decorated in (warm_connection(place_order), warm_connection()(place_order)):
        assert decorated(41, Context()) == 42
        assert decorated.__name__ == "place_order"
        assert decorated.__doc__ == "Doc of the handler."
        assert inspect.unwrap(decorated) is place_order


def test_return_commits(environment: Environment, admin: psycopg.Connection) -> None:
    """What a handler wrote is visible to others once it has returned, and not before."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> list[str]:
        connection.execute("insert into ledger values (%s)", [event])
        return ledger(admin)

    assert handler("a", Context()) == []
    assert ledger(admin) == ["a"]


def test_exception_rolls_back_and_is_the_handlers_own(
    environment: Environment, admin: psycopg.Connection, backend_pid: Callable[..., int]
) -> None:
    """A raising handler leaves nothing behind, its exception arrives unchanged, and the connection is kept."""
    before = backend_pid({}, Context())

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        handler("a", Context())
    assert ledger(admin) == []
    assert backend_pid({}, Context()) == before


def test_failed_statement_that_was_swallowed_is_not_acknowledged(
    environment: Environment, admin: psycopg.Connection
) -> None:
    """A handler that swallows a failed statement and returns gets TransactionAborted: its work was rolled back."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        connection.execute("insert into ledger values ('kept?')")
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0")
        return "acknowledged"

    with pytest.raises(TransactionAborted, match=r"with connection.transaction\(\)"):
        handler("a", Context())
    assert ledger(admin) == []


def test_savepoint_keeps_the_rest(environment: Environment, admin: psycopg.Connection) -> None:
    """A failure inside `with connection.transaction()` rolls back to there only, as the error message advises."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values ('kept')")
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute("insert into ledger values ('kept')")

    handler("a", Context())
    assert ledger(admin) == ["kept"]


def test_terminated_connection_is_replaced_before_the_handler_runs(
    backend_pid: Callable[..., int], admin: psycopg.Connection
) -> None:
    """A server connection that was terminated between two invocations costs no invocation."""
    for _ in range(3):
        old = backend_pid({}, Context())
        admin.execute("select pg_terminate_backend(%s, 5000)", [old])
        assert backend_pid({}, Context()) != old


def test_connection_that_dies_at_begin_is_replaced(
    backend_pid: Callable[..., int], admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the check saw nothing, a connection lost at BEGIN is replaced: nothing of the user's has run."""
    old = backend_pid({}, Context())
    monkeypatch.setattr(WarmConnection, "_why_not", lambda *_: None)
    admin.execute("select pg_terminate_backend(%s, 5000)", [old])
    assert backend_pid({}, Context()) != old


def test_long_frozen_connection_must_answer(backend_pid: Callable[..., int]) -> None:
    """After a long freeze (wall clock) a healthy connection answers the check and is kept."""
    old = backend_pid({}, Context())
    warm()._last_used -= 3600
    assert backend_pid({}, Context()) == old


def test_clock_that_went_back_is_not_trusted(backend_pid: Callable[..., int]) -> None:
    """A wall clock that jumped back makes the check ask the server rather than trust the idle time."""
    old = backend_pid({}, Context())
    warm()._last_used = time.time() + 3600
    assert backend_pid({}, Context()) == old


def test_loss_during_the_handler_is_reported(environment: Environment, admin: psycopg.Connection) -> None:
    """A handler that swallows the loss of its connection does not get its invocation acknowledged."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        connection.execute("insert into ledger values ('lost')")
        admin.execute("select pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        return "acknowledged"

    with pytest.raises(ConnectionUnavailable, match="lost during the handler"):
        handler("a", Context())
    assert ledger(admin) == []


def test_loss_during_commit_is_an_unknown_outcome(environment: Environment, admin: psycopg.Connection) -> None:
    """A connection that dies while COMMIT runs raises CommitOutcomeUnknown, and is never silently repeated."""
    admin.execute(
        """
        create or replace function die() returns trigger language plpgsql security definer as
        $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); return null; end $$;
        create constraint trigger die_at_commit after insert on ledger
        deferrable initially deferred for each row when (new.id = 'dies') execute function die();
        """
    )

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])

    try:
        with pytest.raises(CommitOutcomeUnknown, match="unknown"):
            handler("dies", Context())
        handler("lives", Context())
    finally:
        admin.execute("drop function die cascade")
    assert ledger(admin) == ["lives"]


def test_statement_does_not_outlive_its_invocation(environment: Environment, admin: psycopg.Connection) -> None:
    """A statement that would run past the deadline less the margin is cancelled by the server."""

    @warm_connection
    def handler(event: int, context: object, connection: psycopg.Connection) -> None:
        connection.execute("select pg_sleep(%s) /* outlives */", [event])

    handler(0, Context())  # what opening takes is not within those 600 ms
    with pytest.raises(psycopg.errors.QueryCanceled):
        handler(60, Context(remaining_ms=600))
    running = admin.execute(
        "select count(*) from pg_stat_activity where state = 'active' and query like %s and pid <> pg_backend_pid()",
        ["%outlives%"],
    )
    assert running.fetchone() == (0,)


def test_handler_near_its_end_does_not_start(environment: Environment, admin: psycopg.Connection) -> None:
    """With less time left than the margin the handler is not called at all."""
    calls = []

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        calls.append(event)

    with pytest.raises(DeadlineTooClose, match="nothing has run"):
        handler("a", Context(remaining_ms=150))
    assert calls == []


def test_handler_that_commits_or_closes_by_itself(environment: Environment, admin: psycopg.Connection) -> None:
    """A handler may use `with connection:`, which commits and closes; the next invocation gets a new connection."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> int:
        with connection:
            connection.execute("insert into ledger values (%s)", [event])
        return connection.info.backend_pid if not connection.closed else 0

    handler("a", Context())
    handler("b", Context())
    assert ledger(admin) == ["a", "b"]


def test_changed_autocommit_does_not_leak_into_the_next_invocation(
    environment: Environment, admin: psycopg.Connection
) -> None:
    """An invocation that switches autocommit on leaves the next one with one transaction again."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> bool:
        seen = connection.autocommit
        connection.commit()
        connection.autocommit = True
        return seen

    assert [handler("a", Context()), handler("a", Context())] == [False, False]


def test_forked_child_opens_its_own_connection(backend_pid: Callable[..., int], admin: psycopg.Connection) -> None:
    """After a fork the child gets a connection of its own, and the parent's goes on working."""
    parent = backend_pid({}, Context())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(backend_pid({}, Context())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        childs = answer.read()
    assert childs.isdigit()
    assert int(childs) != parent
    assert backend_pid({}, Context()) == parent


def test_context_without_a_deadline_is_accepted(backend_pid: Callable[..., int]) -> None:
    """A script or a test may call the handler with any context, None included."""
    assert backend_pid({}, None) == backend_pid({}, Context())


def test_wrong_password_is_one_clear_error_without_the_password(environment: Environment) -> None:
    """A refused login names host, database and user, and neither the error nor its context holds the password."""
    wrong = "wrong-password-that-must-not-be-shown"
    environment(**{names.PASSWORD: wrong})

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        pytest.fail("must not run")

    with pytest.raises(ConnectionUnavailable, match="layer_user.*authentication failed") as caught:
        handler("a", Context())
    assert wrong not in str(caught.value)
    assert caught.value.__cause__ is None
    assert wrong not in repr(names.LayerSettings.from_environment())


def test_unreachable_host_is_one_clear_error(environment: Environment) -> None:
    """A host that refuses is named, with its port; a psycopg `except` catches it."""
    environment(**{names.PORT: "1"})

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        pytest.fail("must not run")

    with pytest.raises(psycopg.OperationalError, match=r"no connection to 127.0.0.1:1.*nothing has run"):
        handler("a", Context())


def test_missing_settings_fail_at_import(environment: Environment) -> None:
    """A function without its variables fails where the decorator is applied, naming the variable."""
    environment(**{names.HOST: None})
    with pytest.raises(SettingsInvalid, match="EMBERPOOL_HOST must be set"):

        @warm_connection
        def handler(event: str, context: object, connection: psycopg.Connection) -> None: ...


def test_application_name_names_the_function(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_stat_activity shows which function and which environment holds a connection."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")
    monkeypatch.setenv("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/22/[$LATEST]0123456789abcdef")

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        return connection.execute("show application_name").fetchone()[0]

    assert handler("a", Context()) == "orders/89abcdef"
