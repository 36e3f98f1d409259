"""One invocation on the warm connection: begin, call, commit or roll back; the whole of it once more if it may be."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import psycopg
from psycopg import IsolationLevel

from emberpool import telemetry
from emberpool.commit import commit
from emberpool.connection import WarmConnection
from emberpool.deadline import Deadline
from emberpool.errors import CommitOutcomeUnknown, ConnectionInUse, NoAnswer, NotCommitted, OutsideInvocation
from emberpool.session import SessionConnection
from emberpool.watchdog import Watchdog

ResultT = TypeVar("ResultT")

# A handler that raises inside `for row in cursor.stream(...)` leaves the stream open: its traceback holds it.
ROLLBACK_PATIENCE_SECONDS = 0.05
ROLLBACK_SECONDS = 0.05  # when the invocation's time is nearly over
# A watchdog that got no processor in time still asks the server to cancel, and waits at least so long for the end.
LATE_CANCEL_SECONDS = 0.05
LONGEST_CHAIN = 8  # of errors that wrap each other

# The connections of the invocation that runs, by the name of their database. One invocation runs at a time.
_current: dict[str | None, SessionConnection] = {}
_watchdog = Watchdog()


@dataclass(frozen=True)
class HandlerOptions:
    """What the decorator was told."""

    transaction: bool = True
    read_only: bool = False
    isolation_level: IsolationLevel | None = None
    idempotent: bool = False
    resolve_commit: bool = False
    deadline_margin_ms: int | None = None
    database: str | None = None
    prewarm: bool = True


def current_connection(database: str | None = None) -> psycopg.Connection:
    """Return the connection of the invocation that runs, from any depth below a handler with @warm_connection.

    Raises OutsideInvocation when none runs (or none on that database).
    """
    connection = _current.get(database)
    if connection is None:
        raise OutsideInvocation("no handler with @warm_connection runs" + (f" on {database!r}" if database else ""))
    return connection


def running_connection(database: str | None) -> SessionConnection | None:
    """Return the connection of the invocation that runs on that database, None when none does."""
    return _current.get(database)


def continue_on(database: str | None, connection: SessionConnection) -> None:
    """Let the invocation that runs go on with another connection, after its own was replaced."""
    _current[database] = connection


def run(
    warm: WarmConnection, options: HandlerOptions, call: Callable[..., ResultT], event: object, context: object
) -> ResultT:
    """Call the handler inside an invocation; an idempotent one once more after a loss that allows it."""
    deadline = deadline_of(warm, options, context)
    try:
        with Invocation(warm, options, deadline, context) as connection:
            return call(event, context, connection)
    except Exception as error:
        reason = reason_to_repeat(error) if options.idempotent else None
        left_ms = deadline.left_ms()
        if reason is None or (left_ms is not None and left_ms <= 0):
            raise
        telemetry.retried(reason)
    with Invocation(warm, options, deadline, context) as connection:
        return call(event, context, connection)


class Invocation:
    """One invocation: gives its connection, commits when it is left, rolls back when it raises.

    Inside another invocation on the same database it joins that one, as a savepoint. A class and not a generator with
    @contextmanager: it stands on the warm path of every invocation.
    """

    __slots__ = (
        "_connection",
        "_context",
        "_deadline",
        "_gives_up_at",
        "_is_cancelled",
        "_is_cold",
        "_joined",
        "_options",
        "_wait_ms",
        "_warm",
    )

    def __init__(self, warm: WarmConnection, options: HandlerOptions, deadline: Deadline, context: object) -> None:
        self._warm = warm
        self._options = options
        self._deadline = deadline
        self._context = context
        self._is_cold = not warm.is_open
        self._joined: AbstractContextManager[object] | None = None
        self._gives_up_at: float | None = None
        self._is_cancelled = False

    def __enter__(self) -> SessionConnection:
        database = self._options.database
        outer = _current.get(database)
        if outer is not None:
            self._joined = outer.transaction() if self._options.transaction else nullcontext()
            self._joined.__enter__()
            return outer
        began = time.perf_counter()
        try:
            start = self._warm.begin if self._options.transaction else self._warm.without_transaction
            connection = self._connection = start(
                self._deadline, self._options.isolation_level, self._options.read_only
            )
        except ConnectionInUse:
            raise  # it is somebody else's: not ours to put to rest
        except BaseException:
            self._wait_ms = (time.perf_counter() - began) * 1000
            self._ended()
            raise
        self._wait_ms = (time.perf_counter() - began) * 1000
        _current[database] = connection
        if self._deadline.last_statement_at is not None:
            _watchdog.arm(self._deadline.last_statement_at, self._cancel)
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._joined is not None:
            return self._joined.__exit__(kind, error, trace)
        connection = self._connection
        del _current[self._options.database]
        if self._deadline.last_statement_at is not None:
            _watchdog.disarm()
        try:
            if error is not None:
                self._roll_back(connection)
                if (
                    connection.was_given_up
                    and isinstance(error, psycopg.OperationalError)
                    and is_connection_loss(error)
                ):
                    raise NoAnswer(
                        "the database did not answer until shortly before this invocation's end, so the connection was "
                        "closed: what was not committed is rolled back. A task of the proxy, or the way to it, is gone"
                    ) from error
            elif self._options.transaction:
                try:
                    commit(self._warm, connection, self._deadline, self._options.resolve_commit)
                except BaseException:
                    self._roll_back(connection)
                    raise
        finally:
            self._ended()
        return None

    def _ended(self) -> None:
        self._warm.rest()
        telemetry.invocation_ended(self._is_cold, self._context, self._wait_ms)

    def _roll_back(self, connection: SessionConnection) -> None:
        """Roll back, or close a connection on which that does not work, while there is time for either."""
        if self._deadline.last_statement_at is not None:
            give_up_at = max(self._deadline.last_answer_at, time.time() + ROLLBACK_SECONDS)
            _watchdog.arm(give_up_at, connection.give_up)
        try:
            _roll_back(connection)
        finally:
            _watchdog.disarm()

    def _cancel(self) -> None:
        connection = _current.get(self._options.database)
        if connection is None:
            return
        now = time.time()
        if self._gives_up_at is None:
            is_late = now > self._deadline.last_start_at
            self._gives_up_at = max(self._deadline.last_answer_at, now + LATE_CANCEL_SECONDS if is_late else 0.0)
        if now >= self._gives_up_at:
            if connection.give_up():
                telemetry.given_up()
        elif connection.cancel_running(self._gives_up_at) and not self._is_cancelled:
            self._is_cancelled = True  # a statement that goes on is cancelled again, and said once
            telemetry.deadline_cancelled()


def deadline_of(warm: WarmConnection, options: HandlerOptions, context: object) -> Deadline:
    """Return when the invocation's statements must have ended."""
    margin_ms = options.deadline_margin_ms
    return Deadline.of(context, warm.settings.deadline_margin_ms if margin_ms is None else margin_ms)


def reason_to_repeat(error: BaseException) -> str | None:
    """Return the name of the loss that lets an idempotent handler run again, None for any other error.

    Looks for psycopg's error in what others wrap it with: SQLAlchemy keeps it as `orig`.
    """
    for _ in range(LONGEST_CHAIN):
        if isinstance(error, psycopg.Error):
            is_loss = isinstance(error, psycopg.OperationalError) and _may_be_repeated(error)
            return type(error).__name__ if is_loss else None
        wrapped = getattr(error, "orig", None) or error.__cause__
        if not isinstance(wrapped, BaseException):
            return None
        error = wrapped
    return None


def _may_be_repeated(error: psycopg.OperationalError) -> bool:
    if isinstance(error, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected):
        return True
    return isinstance(error, CommitOutcomeUnknown | NotCommitted) or is_connection_loss(error)


def is_connection_loss(error: psycopg.OperationalError) -> bool:
    """Say whether psycopg reports that the connection itself went away (SQLSTATE class 08, 57P01 to 57P03, or none)."""
    state = error.sqlstate
    return type(error) is psycopg.OperationalError if state is None else state.startswith(("08", "57P0"))


def _roll_back(connection: SessionConnection) -> None:
    try:
        if connection.is_held(ROLLBACK_PATIENCE_SECONDS):
            connection.close()
        if not connection.closed:
            connection.rollback()
    except psycopg.Error:
        # The handler's own exception is what matters; a lost connection rolls back by itself.
        connection.close()
