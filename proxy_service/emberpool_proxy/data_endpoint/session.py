"""One client connection to PgBouncer on asyncio: pipelines of libpq, whose outcomes arrive as one future.

psycopg's own connection costs several times as much a query; libpq through psycopg's `pq` costs two thirds of asyncpg
(18 against 27 us of CPU for one row). Always in pipeline mode: it costs the same, and several steps are one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable, Sequence

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGcancelConn, PGconn, PGresult

from emberpool_proxy.data_endpoint.memory import GROWTH, result_bytes
from emberpool_proxy.data_endpoint.prepared import Key, PreparedStatements
from emberpool_proxy.data_endpoint.steps import Outcome, Step, Way

IDLE = pq.TransactionStatus.IDLE
IN_TRANSACTION = pq.TransactionStatus.INTRANS
IN_FAILED_TRANSACTION = pq.TransactionStatus.INERROR

_SYNC = pq.ExecStatus.PIPELINE_SYNC
_FAILED, _SKIPPED = pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED
_PART = pq.ExecStatus.TUPLES_CHUNK
_COPIES = frozenset({pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH})
_ENDS = frozenset({b"FATAL", b"PANIC"})
_MOST_LAST_RESULTS = 8
_PART_ROWS = 64  # a result comes in parts of so many rows, so that one that is too large can be dropped on the way
# Bytes that arrive are counted from this read on: a result of a few rows pays nothing for it.
_READS_NOT_COUNTED = 3
# More of one part of a result is not waited for, the connection is closed. What libpq reads while it is asked to is not
# counted: a part that was there before is looked at when it is taken, and memory.py bounds the longest ones.
_MOST_PENDING_BYTES = 32 * 1024 * 1024
_MEMORY_OF_WIRE = 2  # the most of a part: libpq keeps values in blocks that may be half empty
_TOO_LARGE = "a row of the result is too large for the endpoint"
_NO_ROOM = "cannot allocate memory for input buffer"  # libpq's: see memory.py
_LENGTH = struct.Struct("i")


class SessionLost(Exception):  # noqa: N818 (a fact, not a mistake)
    """The connection ended before the pipeline did. `outcomes` are of the steps that were answered before."""

    def __init__(self, words: str, last: PGresult | None = None, outcomes: Sequence[Outcome] = ()) -> None:
        super().__init__(words)
        self.words = words
        self.last = last  # the error that the server ended it with, if it said one
        self.outcomes = outcomes


class Session:
    """A connection that has logged in. `when_lost` is called when it ends while nothing runs on it.

    `is_bloated` is true when libpq has taken much memory for it, which it keeps to the connection's end.
    """

    def __init__(self, connection: PGconn, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._socket = connection.socket
        self._prepared = PreparedStatements()
        self._waiting: asyncio.Future[list[Outcome]] | None = None
        self._outcomes: list[Outcome] = []
        self._outcome: Outcome = []
        self._queue: list[Step | Key | None] = []  # the pipeline: steps, preparations, and None for what is closed
        self._at = 0
        self._refused: Outcome = []  # why the preparation failed
        self._is_asked = self._has_failed = self._is_writing = False
        self._last: PGresult | None = None
        self._lost_by: str | None = None
        self._most_bytes = self._reads = self._received = self._pending = 0
        self.is_running = self.is_overflowing = self.is_bloated = False
        self.idle_since = 0.0
        self.when_lost: Callable[[Session], None] | None = None
        self.when_overflowing: Callable[[], None] | None = None
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        loop.add_reader(self._socket, self._read)

    @property
    def is_usable(self) -> bool:
        """Whether it can run another pipeline."""
        return self._lost_by is None

    @property
    def transaction_status(self) -> int:
        """libpq's, of when the last pipeline ended: IDLE, IN_TRANSACTION, IN_FAILED_TRANSACTION."""
        return self._connection.transaction_status

    def parameter(self, name: bytes) -> bytes | None:
        """Return what the server has reported of a parameter."""
        return self._connection.parameter_status(name)

    def cancel_connection(self) -> PGcancelConn:
        """Return libpq's handle of a cancel request."""
        return self._connection.cancel_conn()

    def renew_prepared(self) -> None:
        """Prepare every statement anew: what PostgreSQL has prepared is gone, or has other columns now."""
        self._prepared.renew()

    def run(self, steps: Sequence[Step], most_bytes: int = 0) -> asyncio.Future[list[Outcome]]:
        """Send the steps, and return the future of their outcomes, which raises SessionLost; one pipeline at a time.

        Steps that only prepare have none; the error of one is that of the step after it. One outcome more than steps is
        an error at their common end. Once more than about `most_bytes` (0: any) have come
        for the steps that are `is_asked`, `is_overflowing` is true and their rows are dropped. Cancelling the future
        stops nothing: see `ended`.
        """
        self._waiting = waiting = self._loop.create_future()
        if self._lost_by is not None:
            waiting.set_exception(self._lost())
            return waiting
        self._outcomes, self._outcome, self._queue, self._refused = [], [], [], []
        self._at = self._reads = self._received = self._pending = 0
        self._most_bytes = most_bytes
        self.is_running, self.is_overflowing, self._has_failed = True, False, False
        try:
            for step in steps:
                self._send(step)
            self._connection.pipeline_sync()
            self._begin_step()
            if self._connection.flush():
                self._is_writing = True
                self._loop.add_writer(self._socket, self._write)
        except psycopg.Error as error:
            self._lose(str(error))
        return waiting

    def ended(self) -> asyncio.Future[list[Outcome]]:
        """Return another future of the last pipeline's outcomes, for when the one of `run` was cancelled."""
        waiting: asyncio.Future[list[Outcome]] = self._loop.create_future()
        if self.is_running:
            self._waiting = waiting
        elif self._lost_by is not None:
            waiting.set_exception(self._lost())
        else:
            waiting.set_result(self._outcomes)
        return waiting

    def close(self, words: str = "closed") -> None:
        """End the connection at once; who waits for it gets SessionLost."""
        self.when_lost = None
        self._lose(words)

    def _send(self, step: Step) -> None:
        connection, queue = self._connection, self._queue
        if step.way is Way.REPEATED:
            key = (step.sql, step.types)
            name, text, closed = self._prepared.use(key)
            if text:
                connection.send_prepare(name, text, step.types or None)
                queue.append(key)
            if closed:
                connection.send_close_prepared(closed)
                queue.append(None)
            if name:
                connection.send_query_prepared(name, step.params, step.formats)
            else:
                connection.send_query_params(step.sql, step.params, step.types or None, step.formats)
        elif step.way is Way.PLAIN:
            connection.send_query_params(step.sql, step.params, step.types or None, step.formats)
        elif step.way is Way.PREPARE:
            connection.send_prepare(b"", step.sql, step.types or None)
            queue.append(_UNNAMED)
            return
        else:
            connection.send_query_prepared(b"", step.params, step.formats)
        queue.append(step)

    def _begin_step(self) -> None:
        """Have the rows of the query that is answered next come in parts, if they are the caller's."""
        query = self._queue[self._at] if self._at < len(self._queue) else None
        self._is_asked = isinstance(query, Step) and query.is_asked and self._most_bytes > 0 and not self._has_failed
        if self._is_asked:
            self._connection.set_chunked_rows_mode(_PART_ROWS)

    def _write(self) -> None:
        try:
            if not self._connection.flush():
                self._stop_writing()
        except psycopg.Error as error:
            self._lose(str(error))

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        connection = self._connection
        try:
            if not self.is_running:
                self._read_idle()
                return
            self._reads += 1
            if self._reads > _READS_NOT_COUNTED:
                self._consume_counted()
            else:
                connection.consume_input()
            while self._lost_by is None and not connection.is_busy():
                result = connection.get_result()
                if result is None:
                    self._end_step()
                elif result.status == _SYNC:
                    self._end()
                    return
                else:
                    self._take(result)
            GROWTH.renew()  # libpq may have made room for the message that has begun
        except psycopg.Error as error:
            self._lose(str(error))
        except MemoryError:
            self._lose(_TOO_LARGE)

    def _read_idle(self) -> None:
        """Take what comes unasked: a changed parameter, or the end."""
        self._connection.consume_input()
        self._connection.is_busy()  # takes the messages in
        self._connection.consume_input()  # raises when the end is behind them

    def _consume_counted(self) -> None:
        before = self._in_socket()
        self._connection.consume_input()
        taken = max(0, before - self._in_socket())
        self._received += taken
        self._pending += taken
        most_pending = max(_MOST_PENDING_BYTES, self._most_bytes)
        if self._pending > most_pending:
            self._lose(_TOO_LARGE)
        elif self._is_asked and self._received > self._most_bytes and not self.is_overflowing:
            self._overflow()

    def _overflow(self) -> None:
        self.is_overflowing = True
        self._outcome.clear()
        if self.when_overflowing:
            self.when_overflowing()

    def _in_socket(self) -> int:
        (length,) = _LENGTH.unpack(fcntl.ioctl(self._socket, termios.FIONREAD, bytes(_LENGTH.size)))
        return int(length)

    def _take(self, result: PGresult) -> None:
        status = result.status
        self._pending = 0
        if status == _FAILED:
            self._has_failed = True  # all steps after it are skipped
            if _is_end(result):
                self._last = result
        if status in _COPIES:
            self._lose("COPY from or to the client is not possible here")
        elif status != _PART:
            self._outcome.append(result)
        else:
            self._take_part(result)

    def _take_part(self, result: PGresult) -> None:
        # What came in one read had room in libpq's buffer, which is not large unless it is bloated.
        is_any_size = self._reads > 1 or self.is_bloated
        if is_any_size and result_bytes(result) > _MEMORY_OF_WIRE * self._most_bytes:
            self.is_bloated = True
            if not self.is_overflowing:
                self._overflow()
        elif not self.is_overflowing:
            self._outcome.append(result)

    def _end_step(self) -> None:
        outcome, self._outcome = self._outcome, []
        if not outcome:
            # Nothing runs any more, and no Sync has come.
            self._lose(self._connection.get_error_message())
            return
        query = self._queue[self._at] if self._at < len(self._queue) else _END
        self._at += 1
        status = outcome[-1].status
        if query is None:
            pass  # one that was closed
        elif isinstance(query, Step):
            self._outcomes.append(self._refused if self._refused and status == _SKIPPED else outcome)
        elif status in (_FAILED, _SKIPPED):
            if query is not _UNNAMED:
                self._prepared.failed(query)
            self._refused = self._refused or (outcome if status == _FAILED else [])
        self._begin_step()

    def _end(self) -> None:
        self.is_running = False
        self._stop_writing()
        waiting, self._waiting = self._waiting, None
        if waiting and not waiting.done():
            waiting.set_result(self._outcomes)
            self._outcomes = []

    def _lose(self, words: str) -> None:
        if self._lost_by is not None:
            return
        self._lost_by = _TOO_LARGE if _NO_ROOM in words else words
        was_running, self.is_running = self.is_running, False
        self._stop_writing()
        self._loop.remove_reader(self._socket)
        if was_running:
            self._hear_last_words()
        self._connection.finish()
        waiting, self._waiting = self._waiting, None
        if waiting and not waiting.done():
            waiting.set_exception(self._lost())
        elif not was_running and self.when_lost:
            self.when_lost(self)

    def _hear_last_words(self) -> None:
        """Look for why the server ended it: what came together with the end was not taken in."""
        with contextlib.suppress(psycopg.Error):
            for _ in range(_MOST_LAST_RESULTS):
                if self._connection.is_busy():
                    return
                result = self._connection.get_result()
                if result is not None and result.status == _FAILED and _is_end(result):
                    self._last = result
                    return

    def _lost(self) -> SessionLost:
        return SessionLost(self._lost_by or "", self._last, self._outcomes)


def _is_end(error: PGresult) -> bool:
    # PgBouncer's errors have the one field, PostgreSQL's also the other, which is in no language.
    field = pq.DiagnosticField
    return (error.error_field(field.SEVERITY_NONLOCALIZED) or error.error_field(field.SEVERITY)) in _ENDS


_END = Step(b"")
_UNNAMED: Key = (b"", ())
