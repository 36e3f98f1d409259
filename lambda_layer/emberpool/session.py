"""psycopg's connection as the layer hands it out: every transaction begins with the invocation's statement timeout.

Owns what is hooked into psycopg: the BEGIN that it sends before a first statement, and the look at each statement.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import errors, generators
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import Row, TupleRow, tuple_row

from emberpool.deadline import NO_DEADLINE, Deadline
from emberpool.session_state import hazard_of

CANCEL_SECONDS = 2.0
PREPARE_THRESHOLD, PREPARED_MAX = 5, 100  # psycopg's own


class LookingCursor(psycopg.Cursor[Row]):
    """A cursor that looks whether a statement leaves something behind in the session, and lets BEGIN ride with it."""

    def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute a query as psycopg does; the first of a transaction may bring its BEGIN along."""
        connection = self._conn
        if isinstance(connection, SessionConnection) and connection.may_ride(query, params):
            with connection.riding():
                return super().execute(query, params, prepare=prepare, binary=binary)
        return super().execute(query, params, prepare=prepare, binary=binary)

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        connection = self._conn
        if isinstance(connection, SessionConnection) and connection.on_hazard and isinstance(query, str):
            kind = hazard_of(query)
            if kind:
                connection.on_hazard(kind)
        yield from super()._start_query(query)


class SessionConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that knows when its invocation ends. Statements that would come too late are not sent."""

    deadline: Deadline = NO_DEADLINE
    on_hazard: Callable[[str], None] | None = None
    begins_with_first_statement = False
    is_lent = False  # to somebody who begins and ends the transactions on it: SQLAlchemy
    _is_riding = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.poller = select.poll()  # the socket's, made once: it is asked before each invocation

    def may_ride(self, query: Query, params: Params | None) -> bool:
        """Say whether BEGIN and this statement may go in one message: a pipeline takes single statements only."""
        return (
            self.begins_with_first_statement
            and self.pgconn.transaction_status == TransactionStatus.IDLE
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

    def is_held(self, patience_seconds: float) -> bool:
        """Say whether a stream or a COPY that was left open, or another thread, keeps the connection to itself.

        Whoever holds it for longer than `patience_seconds` may do so for ever: COMMIT and ROLLBACK would wait for it.
        """
        if not self.lock.acquire(timeout=patience_seconds):
            return True
        self.lock.release()
        return False

    def is_left_half_done(self) -> bool:
        """Say whether a handler left something open that the next one would run into."""
        return (
            self.pgconn.transaction_status != TransactionStatus.IDLE
            or self._pipeline is not None
            or self._num_transactions > 0
            or self._tpc is not None
            or self.lock.locked()
        )

    def restore_defaults(self) -> None:
        """Undo what a handler changed of the connection's own attributes; registered adapters stay."""
        if self.autocommit:
            self.autocommit = False
        if self.deferrable is not None:
            self.deferrable = None
        if self.row_factory is not tuple_row:
            self.row_factory = tuple_row
        if self.cursor_factory is not LookingCursor:
            self.cursor_factory = LookingCursor
        if self.server_cursor_factory is not psycopg.ServerCursor:
            self.server_cursor_factory = psycopg.ServerCursor
        if self.prepare_threshold != PREPARE_THRESHOLD:
            self.prepare_threshold = PREPARE_THRESHOLD
        if self.prepared_max != PREPARED_MAX:
            self.prepared_max = PREPARED_MAX
        self._notice_handlers.clear()
        self._notify_handlers.clear()

    def begin_command(self) -> bytes:
        """Return what begins a transaction, for one message. Raises DeadlineTooClose."""
        return self._get_tx_start_command() + b"; " + self._timeout_command()

    def cancel_running(self) -> bool:
        """Cancel the statement that runs now; False when none does. Safe to call from another thread."""
        if self.closed or self.pgconn.transaction_status != TransactionStatus.ACTIVE:
            return False
        try:
            self.cancel_safe(timeout=CANCEL_SECONDS)
        except psycopg.Error:
            return False  # the server is gone, and the statement with it, or statement_timeout ends it
        return True

    def _timeout_command(self) -> bytes:
        return b"SET LOCAL statement_timeout = %d" % self.deadline.statement_timeout_ms()

    def _start_query(self) -> PQGen[None]:
        self.deadline.statement_timeout_ms()  # raises when it is too late for another statement
        if self._is_riding:
            # Without psycopg's synchronisation after BEGIN: all of it leaves in one message with the statement.
            yield from self._exec_command(self._get_tx_start_command())
        else:
            yield from super()._start_query()

    def _exec_command(self, command: Any, result_format: Format = Format.TEXT) -> PQGen[PGresult | None]:
        # psycopg begins each transaction, a user's own included, with this very object.
        if not self._begin_statement or command is not self._begin_statement:
            return (yield from super()._exec_command(command, result_format))
        if self._pipeline:
            yield from super()._exec_command(command)
            return (yield from super()._exec_command(self._timeout_command()))
        self._check_connection_ok()
        self.pgconn.send_query(self.begin_command())
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result, encoding=self.pgconn._encoding)
        return None
