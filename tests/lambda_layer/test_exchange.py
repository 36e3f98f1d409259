"""BEGIN and COMMIT go below psycopg's cursors: they keep its promises, and the layer's bounds."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any

import psycopg
import pytest

from emberpool import CommitOutcomeUnknown, NoAnswer, PoolBusy, warm_connection

from .conftest import Admin, Context, Environment, ledger, silent

Connection = psycopg.Connection[Any]


@pytest.fixture
def insert(environment: Environment) -> Callable[..., None]:
    """A handler that adds a row; then `event`, called with the connection, may do harm before its COMMIT."""

    @warm_connection
    def handler(event: Callable[[Connection], None], context: object, connection: Connection) -> None:
        connection.execute("insert into ledger values (gen_random_uuid())")
        event(connection)

    return handler


def nothing(connection: Connection) -> None: ...


def test_server_that_does_not_answer_begin_is_waited_for_within_the_invocation(
    backend_pid: Callable[..., int], insert: Callable[..., None], admin: Admin
) -> None:
    """PoolBusy before the invocation's end, though nothing on the path reports an error; the next one works."""
    with silent(backend_pid({}, Context())), pytest.raises(PoolBusy, match="nothing has run"):
        insert(nothing, Context(remaining_ms=600))
    assert ledger(admin) == []
    insert(nothing, Context())
    assert len(ledger(admin)) == 1


@pytest.fixture
def answered_in_time() -> Iterator[Context]:
    """The context of an invocation that has to be over before Lambda would end it."""
    seconds = 2.5
    ends_at = time.monotonic() + seconds
    yield Context(remaining_ms=int(seconds * 1000))
    assert time.monotonic() < ends_at


@pytest.mark.parametrize("transaction", [True, False])
def test_silent_statement_is_given_up_before_the_invocation_ends(
    environment: Environment, admin: Admin, answered_in_time: Context, transaction: bool
) -> None:
    """A clear error instead of Lambda's time-out, where neither the statement nor its cancel request is answered."""

    @warm_connection(transaction=transaction, deadline_margin_ms=2_000)
    def handler(event: ExitStack | None, context: object, connection: Connection) -> None:
        if event:
            event.enter_context(silent(connection.info.backend_pid))
        connection.execute("insert into ledger values (gen_random_uuid())")

    with ExitStack() as stack:
        with pytest.raises(NoAnswer, match="rolled back") as raised:
            handler(stack, answered_in_time)
        assert isinstance(raised.value.__cause__, psycopg.OperationalError)
        handler(None, Context())
    assert len(ledger(admin)) in ([1] if transaction else [1, 2])  # outside of one it runs when the server wakes


def test_silent_commit_is_an_unknown_outcome_before_the_invocation_ends(
    environment: Environment, admin: Admin, answered_in_time: Context
) -> None:
    """COMMIT is waited for as long as the invocation lasts, and no longer; the next invocation works."""

    @warm_connection(deadline_margin_ms=2_000)
    def handler(event: ExitStack | None, context: object, connection: Connection) -> None:
        connection.execute("insert into ledger values (gen_random_uuid())")
        if event:
            event.enter_context(silent(connection.info.backend_pid))

    with ExitStack() as stack:
        with pytest.raises(CommitOutcomeUnknown, match="did not answer COMMIT"):
            handler(stack, answered_in_time)
        handler(None, Context())


def test_handlers_own_error_is_raised_when_the_server_is_silent_afterwards(
    environment: Environment, admin: Admin, answered_in_time: Context
) -> None:
    """ROLLBACK is not waited for until Lambda's time-out, which would hide why the handler failed."""

    @warm_connection(deadline_margin_ms=2_000)
    def handler(event: ExitStack, context: object, connection: Connection) -> None:
        connection.execute("insert into ledger values (gen_random_uuid())")
        event.enter_context(silent(connection.info.backend_pid))
        raise LookupError("no such order")

    with ExitStack() as stack, pytest.raises(LookupError, match="no such order"):
        handler(stack, answered_in_time)
    assert ledger(admin) == []


class InterruptError(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[], None]]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.2) and None
    signal.signal(signal.SIGALRM, before)


def test_signal_handler_ends_a_commit_that_hangs(
    insert: Callable[..., None], admin: Admin, interrupt_soon: Callable[[], None]
) -> None:
    """What a signal's handler raises while COMMIT waits reaches the caller at once; the next invocation works."""
    with ExitStack() as stack:

        def silence(connection: Connection) -> None:
            stack.enter_context(silent(connection.info.backend_pid))
            interrupt_soon()

        with pytest.raises(InterruptError):
            insert(silence, Context())
    insert(nothing, Context())
    assert ledger(admin)


def test_interrupted_commit_of_the_handlers_own_closes_the_connection(
    insert: Callable[..., None], interrupt_soon: Callable[[], None]
) -> None:
    """The answer that nobody waits for any more is not taken for the next statement's."""

    def commit(connection: Connection) -> None:
        with silent(connection.info.backend_pid):
            interrupt_soon()
            with pytest.raises(InterruptError):
                connection.commit()
        assert connection.closed

    insert(commit, Context())


def test_connection_that_another_thread_closes_ends_a_commit_that_hangs(
    insert: Callable[..., None], admin: Admin
) -> None:
    """COMMIT does not wait for ever on a socket that is no more; the next invocation works."""
    with ExitStack() as stack:

        def silence(connection: Connection) -> None:
            stack.enter_context(silent(connection.info.backend_pid))
            closing = threading.Timer(0.2, connection.close)
            closing.start()
            stack.callback(closing.join)

        with pytest.raises(psycopg.OperationalError):
            insert(silence, Context())
    insert(nothing, Context())
    assert ledger(admin)


def test_commit_brings_the_transactions_own_notification(environment: Environment) -> None:
    """A NOTIFY that comes with the answer to COMMIT reaches the handlers that were added, as in psycopg."""

    @warm_connection
    def handler(event: object, context: object, connection: Connection) -> list[str]:
        heard: list[str] = []
        connection.add_notify_handler(lambda notify: heard.append(notify.payload))
        connection.execute("listen orders")
        connection.commit()
        connection.execute("notify orders, 'paid'")
        connection.commit()
        seen = heard.copy()
        connection.execute("unlisten orders")
        return seen

    assert handler({}, Context()) == ["paid"]


def test_commit_that_the_database_refuses_is_its_own_error(environment: Environment, admin: Admin) -> None:
    """A deferred constraint that fails at COMMIT is psycopg's error for it, and nothing is kept."""
    admin.execute("create table once (id int unique deferrable initially deferred)")
    admin.execute("grant all on once to layer_user")

    @warm_connection
    def handler(event: object, context: object, connection: Connection) -> None:
        connection.execute("insert into once values (1), (1)")

    try:
        with pytest.raises(psycopg.errors.UniqueViolation):
            handler({}, Context())
        assert admin.execute("select count(*) from once").fetchone() == (0,)
    finally:
        admin.execute("drop table once")
