"""The one connection of this execution environment: opened, checked, replaced.

Knows nothing of handlers or commits. Keyed by process id: after a fork the child never uses its parent's socket.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import NoReturn

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow

from emberpool import exchange, telemetry
from emberpool.credentials import Credentials
from emberpool.deadline import NO_DEADLINE, Deadline
from emberpool.errors import ConnectionInUse, ConnectionUnavailable, PoolBusy
from emberpool.opening import open_connection, retry_until, seconds_left
from emberpool.session import SessionConnection
from emberpool.settings import LayerSettings

Connection = psycopg.Connection[TupleRow]

# What poll cannot see is a path that drops packets silently, and a load balancer forgets idle flows: after a
# freeze of this length (wall clock, which runs on while frozen) the connection has to answer once.
LONGEST_TRUSTED_IDLE_SECONDS = 5.0
ANSWER_SECONDS = 0.5
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL

_all: weakref.WeakSet[WarmConnection] = weakref.WeakSet()


class WarmConnection:
    """Keeps one psycopg connection open over the invocations of this process. Opens nothing until it is asked to."""

    def __init__(self, settings: LayerSettings) -> None:
        self.settings = settings
        self._lets_begin_ride = settings.pipeline_begin == "on"
        self._credentials = Credentials(settings)
        self._connection: SessionConnection | None = None
        self._is_parents = False  # opened by the process that this one was forked from
        self._last_used = 0.0
        # An invocation that comes while the connection is still being opened in the background waits for that one.
        self._opening = threading.RLock()
        self._opened = 0
        _all.add(self)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, dead or alive."""
        return self._connection is not None

    def open_in_background(self) -> None:
        """Start to open the connection now, while the user's own imports run; a failure shows at the first use."""

        def open_quietly() -> None:
            with contextlib.suppress(psycopg.Error), self._opening:
                if self._connection is None:
                    self._open(time.monotonic())

        threading.Thread(target=open_quietly, name="emberpool-prewarm", daemon=True).start()

    def acquire(self, deadline: Deadline) -> SessionConnection:
        """Return a live connection, opened or replaced when needed; no round trip when it was used lately.

        Raises ConnectionUnavailable or SecretUnavailable.
        """
        # Without the lock when there is one: only this thread discards it, and opening is over.
        connection = self._connection
        if connection is not None:
            reason = self._why_not(connection)
            if reason is not None:
                telemetry.replaced(reason)
                self.discard()
                connection = None
        if connection is None:
            with self._alone(deadline):
                connection = self._connection or self._open(retry_until(self.settings, deadline), deadline)
        connection.deadline = deadline
        return connection

    def begin(self, deadline: Deadline, isolation_level: IsolationLevel | None, read_only: bool) -> SessionConnection:
        """Return the connection inside a new transaction, opened or replaced when needed.

        One round trip when warm. A connection that is lost here is replaced once: nothing of the handler's has
        run yet. With EMBERPOOL_PIPELINE_BEGIN, and a connection that was used lately, none: BEGIN then rides with the
        first statement. Raises ConnectionUnavailable, PoolBusy, SecretUnavailable or DeadlineTooClose.
        """
        if time.time() > deadline.last_start_at:  # before anything is opened
            deadline.statement_timeout_ms("nothing has run")
        may_ride = self._lets_begin_ride and 0 <= time.time() - self._last_used < LONGEST_TRUSTED_IDLE_SECONDS
        connection = self._prepared(self.acquire(deadline), isolation_level, read_only)
        if may_ride or connection.begins_with_first_statement:
            connection.let_begin_ride(may_ride)
        if may_ride or connection.begin():
            return connection
        if not _is_lost(connection) or _is_pool_busy(connection):
            _raise_begin_failed(connection)
        telemetry.replaced("lost at BEGIN")
        self.discard()
        connection = self._prepared(self.acquire(deadline), isolation_level, read_only)
        if not connection.begin():
            _raise_begin_failed(connection)
        return connection

    def without_transaction(
        self, deadline: Deadline, isolation_level: IsolationLevel | None, read_only: bool
    ) -> SessionConnection:
        """Return a live connection in autocommit mode; the options hold for the transactions that the handler begins.

        Raises ConnectionUnavailable or SecretUnavailable.
        """
        connection = self._prepared(self.acquire(deadline), isolation_level, read_only)
        connection.autocommit = True
        return connection

    def lend(self, deadline: Deadline) -> SessionConnection:
        """Return a live connection that nobody else gets until `take_back`.

        Raises ConnectionInUse when it is lent already, ConnectionUnavailable or SecretUnavailable.
        """
        with self._alone(deadline):  # two threads that ask at once must not both get it
            connection = self.acquire(deadline)
            connection.is_lent = True
            # A text of several statements with empty parameters, as SQLAlchemy sends it, may not ride.
            connection.begins_with_first_statement = False
        return connection

    def take_back(self, connection: SessionConnection) -> None:
        """Let others have a connection that was lent."""
        connection.is_lent = False
        if connection is self._connection:
            self._last_used = time.time()

    def rest(self) -> None:
        """Note that the invocation is over; a connection that cannot be used again is discarded."""
        connection = self._connection
        if connection is None:
            return
        if connection.is_lent:
            telemetry.warned(
                "connection_left_checked_out",
                "the invocation ended while SQLAlchemy had the connection checked out; it was closed, and what was not "
                "committed is rolled back: close each Session and Connection, best by `with`",
            )
            self.discard()
            return
        if connection.is_left_half_done():
            if not connection.closed:
                telemetry.replaced("left half done by the handler")
            self.discard()
            return
        connection.restore_defaults()
        connection.deadline = NO_DEADLINE
        self._last_used = time.time()

    def discard(self) -> None:
        """Close the connection, if there is one; the next invocation opens another."""
        connection, self._connection = self._connection, None
        # A child that was forked must not say goodbye on its parent's socket.
        if connection is not None and not self._is_parents:
            connection.close()

    def let_parent_have_it(self) -> None:
        """In a forked child: make sure that nothing in it, psycopg's goodbye included, reaches the parent's server."""
        self._opening = threading.RLock()  # a thread that is not here may have held it
        self._is_parents = True
        connection = self._connection
        if connection is not None and not connection.closed:
            ours, other = socket.socketpair()
            os.dup2(ours.fileno(), connection.pgconn.socket, inheritable=False)
            ours.close()
            other.close()

    @staticmethod
    def _prepared(
        connection: SessionConnection, isolation_level: IsolationLevel | None, read_only: bool
    ) -> SessionConnection:
        # Only when it differs: each assignment makes psycopg put its BEGIN together anew.
        if connection._isolation_level is not isolation_level:
            connection.isolation_level = isolation_level
        if bool(connection._read_only) is not read_only:
            connection.read_only = read_only or None
        return connection

    def _why_not(self, connection: SessionConnection) -> str | None:
        """Return why the connection cannot be used, or None."""
        if self._is_parents:
            return "forked"
        pgconn = connection.pgconn
        if pgconn.status != ConnStatus.OK:
            return "closed by the handler"
        if connection.is_lent:
            raise ConnectionInUse(
                "this environment's one connection is checked out by SQLAlchemy: close that Session or Connection "
                "first, or pass it on"
            )
        events = connection.poller.poll(0)
        if events:
            # A terminated backend sends its last message before it closes: POLLIN comes with POLLRDHUP.
            if events[0][1] & GONE:
                return "closed by server"
            pgconn.consume_input()  # a notification or a notice
            if pgconn.status != ConnStatus.OK:
                return "broken"
        if not 0 <= time.time() - self._last_used < LONGEST_TRUSTED_IDLE_SECONDS:
            if not exchange.answers(connection, ANSWER_SECONDS):
                return "no answer"
            self._last_used = time.time()
        return None

    @contextlib.contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """Wait for whoever opens the connection now, for no longer than the invocation lasts."""
        seconds = seconds_left(deadline)
        if not self._opening.acquire(timeout=-1 if seconds == math.inf else max(seconds, 0)):
            raise ConnectionUnavailable(
                f"{self.settings.host}:{self.settings.port} has not answered in all the time that this invocation had, "
                "and the connection that was begun before it is still being opened; nothing has run"
            )
        try:
            yield
        finally:
            self._opening.release()

    def _open(self, retry_until: float, deadline: Deadline = NO_DEADLINE) -> SessionConnection:
        began = time.monotonic()
        connection = open_connection(self.settings, self._credentials, retry_until, deadline)
        # The connection last: an invocation may look at it while this runs in the background.
        self._is_parents, self._last_used = False, time.time()
        self._connection = connection
        telemetry.opened((time.monotonic() - began) * 1000, is_cold=self._opened == 0)
        self._opened += 1
        return connection


def _in_forked_child() -> None:
    for warm in _all:
        warm.let_parent_have_it()


os.register_at_fork(after_in_child=_in_forked_child)


def _is_lost(connection: Connection) -> bool:
    return connection.pgconn.status != ConnStatus.OK


def _is_pool_busy(connection: Connection) -> bool:
    # PgBouncer closes the client with it. Another try would wait in the same line for as long again.
    return b"query_wait_timeout" in connection.pgconn.error_message


def _raise_begin_failed(connection: Connection) -> NoReturn:
    message = connection.pgconn.error_message.decode(errors="replace").strip()
    is_pool_busy = _is_pool_busy(connection)
    connection.close()
    if is_pool_busy:
        raise PoolBusy(f"every server connection of the pool stayed busy; nothing has run: {message}")
    raise ConnectionUnavailable(f"the transaction could not be started; nothing has run: {message}")
