"""psycopg's connection as the layer hands it out: every transaction begins with the invocation's statement timeout.

Owns what is hooked into psycopg: the BEGIN that it sends before a first statement, and the look at each statement.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import psycopg
from psycopg import errors, generators
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import Row, TupleRow, tuple_row

from emberpool import exchange
from emberpool.deadline import NO_DEADLINE, Deadline
from emberpool.errors import CommitOutcomeUnknown, PoolBusy
from emberpool.session_state import hazard_of

IDLE, ACTIVE, INTRANS, INERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.ACTIVE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)
NoticeHandler = Callable[[errors.Diagnostic], None]

SET_TIMEOUT = b"; SET LOCAL statement_timeout = %d"  # behind BEGIN, in one message
CANCEL_SECONDS, SHORTEST_CANCEL_SECONDS = 2.0, 0.01
COMMIT_LOOK_MS = 25  # COMMIT waits for so long before it looks at the clock, and at least
PREPARE_THRESHOLD, PREPARED_MAX = 5, 100  # psycopg's own
NOTHING_TO_SEND = cast("PQGen[None]", ())  # what `yield from` takes for a generator that is over


class LookingCursor(psycopg.Cursor[Row]):
    """A cursor that looks whether a statement leaves something behind in the session."""

    __slots__ = ()  # as psycopg's: each statement makes a cursor

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        if isinstance(query, str) and (kind := hazard_of(query)):
            connection = self._conn
            if isinstance(connection, SessionConnection) and connection.on_hazard:
                connection.on_hazard(kind)
        # Returned, not delegated to, and no super(): each statement comes by here.
        return psycopg.Cursor._start_query(self, query)


class RidingCursor(LookingCursor[Row]):
    """The same, and BEGIN may ride with a transaction's first statement."""

    __slots__ = ()

    def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute a query as psycopg does; the first of a transaction may bring its BEGIN along."""
        connection = self._conn
        if isinstance(connection, SessionConnection) and connection.may_ride(query, params):
            with connection.riding():
                return super().execute(query, params, prepare=prepare, binary=binary)
        return super().execute(query, params, prepare=prepare, binary=binary)


class SessionConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that knows when its invocation ends. Statements that would come too late are not sent."""

    deadline: Deadline = NO_DEADLINE
    on_hazard: Callable[[str], None] | None = None
    begins_with_first_statement = False
    is_lent = False  # to somebody who begins and ends the transactions on it: SQLAlchemy
    was_closed_in_transaction = False  # with a statement in it that is rolled back now
    was_given_up = False  # by give_up()
    _has_statements = False  # since BEGIN, which the layer sends before there are any
    _is_riding = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.poller = select.poll()  # the socket's, made once: it is asked before each invocation
        self._lasting_notice_handlers: list[NoticeHandler] = []

    def begin(self) -> bool:
        """Begin a transaction below psycopg's cursors, and say whether that succeeded.

        The pool may let it wait for no longer than the invocation lasts. Raises PoolBusy then, and DeadlineTooClose.
        """
        timeout_ms = self.deadline.statement_timeout_ms("nothing has run")
        command = self._get_tx_start_command() + SET_TIMEOUT % timeout_ms
        self._has_statements = False
        try:
            if not timeout_ms:
                return exchange.failure_of(self, command) is None
            until = self.deadline.last_statement_at or math.inf
            first_wait_ms = timeout_ms if timeout_ms < exchange.LOOK_AGAIN_MS else exchange.LOOK_AGAIN_MS
            return exchange.failure_of(self, command, until, first_wait_ms) is None
        except TimeoutError:
            self.close()
            raise PoolBusy(
                "no server connection became free within this invocation's time; nothing has run. The proxy's "
                "query_wait is longer than the function's timeout, or the database does not answer"
            ) from None
        except psycopg.OperationalError:
            return False

    def commit(self) -> None:
        """Commit any pending transaction to the database.

        Raises CommitOutcomeUnknown when the answer is not there shortly before the invocation's end.
        """
        if self._num_transactions or self._tpc or self._pipeline is not None:
            super().commit()
            return
        with self.lock:
            status = self.pgconn.transaction_status
            if status == IDLE:
                return
            if status != INTRANS:
                self._check_connection_ok()
            try:
                failure = exchange.failure_of(self, b"COMMIT", self.deadline.last_answer_at, COMMIT_LOOK_MS)
            except psycopg.Error:
                raise
            except TimeoutError:
                self.close()
                raise CommitOutcomeUnknown(
                    "the database did not answer COMMIT until shortly before this invocation's end: whether it was "
                    "committed is unknown"
                ) from None
            except BaseException:
                self.close()  # interrupted: nobody waits for the answer any more
                raise
            if failure is not None:
                raise errors.error_from_result(failure, encoding=self.pgconn._encoding)
            while notification := self.pgconn.notifies():  # a transaction's own NOTIFY comes with the answer
                if self.pgconn.notify_handler:
                    self.pgconn.notify_handler(notification)

    def close(self) -> None:
        """Close the connection; what has not been committed is rolled back."""
        if self._has_statements and self.pgconn.transaction_status in (INTRANS, INERROR):
            self.was_closed_in_transaction = True
        super().close()

    def let_begin_ride(self, rides: bool) -> None:
        """Say whether the next BEGIN waits for the first statement, to leave in one message with it."""
        self.begins_with_first_statement = rides
        self.cursor_factory = RidingCursor if rides else LookingCursor

    def may_ride(self, query: Query, params: Params | None) -> bool:
        """Say whether BEGIN and this statement may go in one message: a pipeline takes single statements only."""
        return (
            self.begins_with_first_statement
            and self.pgconn.transaction_status == IDLE
            and not self.autocommit
            and self._pipeline is None
            and (params is not None or (isinstance(query, str) and ";" not in query))
        )

    @contextmanager
    def riding(self) -> Iterator[None]:
        """Send BEGIN and the one statement that is executed meanwhile together, and wait for both at the end."""
        with self.pipeline():
            self._is_riding = True
            try:
                yield
            finally:
                self._is_riding = False

    def add_notice_handler(self, callback: NoticeHandler) -> None:
        """Have notices handled by `callback`: until the invocation ends, or for good when SQLAlchemy sets it up."""
        if self.is_lent:
            # Registered once for each of its records; another record on this connection brings the same.
            if callback in self._lasting_notice_handlers:
                return
            self._lasting_notice_handlers.append(callback)
        super().add_notice_handler(callback)

    def is_held(self, patience_seconds: float) -> bool:
        """Say whether a stream or a COPY that was left open, or another thread, keeps the connection to itself.

        Whoever holds it for longer than `patience_seconds` may do so for ever: COMMIT and ROLLBACK would wait for it.
        """
        if not self.lock.acquire(timeout=patience_seconds):
            return True
        self.lock.release()
        return False

    def is_left_half_done(self) -> bool:
        """Say whether a handler left something open that the next one would run into, or closed the connection."""
        return (
            self.pgconn.transaction_status != IDLE
            or self._pipeline is not None
            or self._num_transactions > 0
            or self._tpc is not None
            or self.lock.locked()
        )

    def restore_defaults(self) -> None:
        """Undo what a handler changed of the connection's own attributes; registered adapters stay."""
        # psycopg's attributes and not its properties, nothing set that is as it was: after every invocation.
        if self._autocommit:
            self.autocommit = False
        if self._deferrable is not None:
            self.deferrable = None
        if self.row_factory is not tuple_row:
            self.row_factory = tuple_row
        if self.cursor_factory is not LookingCursor:
            self.cursor_factory = LookingCursor
        if self.server_cursor_factory is not psycopg.ServerCursor:
            self.server_cursor_factory = psycopg.ServerCursor
        if self._prepared.prepare_threshold != PREPARE_THRESHOLD:
            self.prepare_threshold = PREPARE_THRESHOLD
        if self._prepared.prepared_max != PREPARED_MAX:
            self.prepared_max = PREPARED_MAX
        if self._notice_handlers != self._lasting_notice_handlers:
            lasting = [handler for handler in self._notice_handlers if handler in self._lasting_notice_handlers]
            self._notice_handlers, self._lasting_notice_handlers = lasting, lasting.copy()
        if self._notify_handlers:
            self._notify_handlers.clear()

    def cancel_running(self, until: float) -> bool:
        """Cancel the statement that runs now; False when none does. Safe to call from another thread.

        The server is given up at `until` (seconds of the wall clock).
        """
        if self.closed or self.pgconn.transaction_status != ACTIVE:
            return False
        left_seconds = max(until - time.time(), SHORTEST_CANCEL_SECONDS)
        try:
            self.cancel_safe(timeout=min(left_seconds, CANCEL_SECONDS))
        except psycopg.Error:
            return False  # the server is gone, and the statement with it, or statement_timeout ends it
        return True

    def give_up(self) -> bool:
        """Let the statement that runs now fail by a lost connection; False when none does. For another thread.

        The connection itself is not touched, as its thread waits for it: its socket is shut down.
        """
        if self.closed or self.pgconn.transaction_status != ACTIVE:
            return False
        try:
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as waited_for:
                waited_for.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error):
            return False  # it has ended meanwhile
        self.was_given_up = True
        return True

    def _start_query(self) -> PQGen[None]:
        if time.time() > self.deadline.last_start_at:
            self.deadline.statement_timeout_ms()  # raises: it is too late for another statement
        self._has_statements = True
        if self.pgconn.transaction_status == INTRANS:
            return NOTHING_TO_SEND
        if self._is_riding:
            # Without psycopg's synchronisation after BEGIN: all of it leaves in one message with the statement.
            return self._begin_riding()
        return super()._start_query()

    def _begin_riding(self) -> PQGen[None]:
        yield from self._exec_command(self._get_tx_start_command())

    def _exec_command(self, command: Any, result_format: Format = Format.TEXT) -> PQGen[PGresult | None]:
        # psycopg begins each transaction, a user's own included, with this very object.
        if not self._begin_statement or command is not self._begin_statement:
            return (yield from super()._exec_command(command, result_format))
        set_timeout = SET_TIMEOUT % self.deadline.statement_timeout_ms()
        if self._pipeline:
            yield from super()._exec_command(command)
            return (yield from super()._exec_command(set_timeout.removeprefix(b"; ")))
        self._check_connection_ok()
        self.pgconn.send_query(command + set_timeout)
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result, encoding=self.pgconn._encoding)
        return None
