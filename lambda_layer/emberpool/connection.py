"""The one connection of this execution environment: opened, checked, replaced.

Knows nothing of handlers or commits. Keyed by process id: after a fork the child never uses its parent's socket.
"""

from __future__ import annotations

import os
import select
import time
from typing import NoReturn

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.rows import TupleRow

from emberpool.credentials import Credentials, Login
from emberpool.errors import ConnectionUnavailable, PoolBusy
from emberpool.settings import LayerSettings

Connection = psycopg.Connection[TupleRow]

# What poll cannot see is a path that drops packets silently, and a load balancer forgets idle flows: after a
# freeze of this length (wall clock, which runs on while frozen) the connection has to answer once.
LONGEST_TRUSTED_IDLE_SECONDS = 5.0
ANSWER_SECONDS = 0.5
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL

TCP_USER_TIMEOUT_MS = 5000  # keepalives are off while data is unacknowledged; this bounds that case
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_COUNT = 30, 5, 3
LONGEST_APPLICATION_NAME = 63  # PostgreSQL cuts it there


class WarmConnection:
    """Keeps one psycopg connection open over the invocations of this process. Opens nothing until `begin()`."""

    def __init__(self, settings: LayerSettings) -> None:
        self._settings = settings
        self._credentials = Credentials(settings)
        self._connection: Connection | None = None
        self._pid = 0
        self._last_used = 0.0

    def begin(self, statement_timeout_ms: int) -> Connection:
        """Return the connection inside a new transaction, opened or replaced when needed.

        One round trip when warm. A connection that is lost here is replaced once: nothing of the handler's has
        run yet. Raises ConnectionUnavailable, PoolBusy or SecretUnavailable.
        """
        begin = f"BEGIN; SET LOCAL statement_timeout = {statement_timeout_ms}".encode()
        connection = self._current()
        if connection is not None:
            if _succeeded(connection, begin):
                return connection
            if not _is_lost(connection) or _is_pool_busy(connection):
                _raise_begin_failed(connection)
            self.discard()
        connection = self._open()
        if not _succeeded(connection, begin):
            _raise_begin_failed(connection)
        return connection

    def rest(self) -> None:
        """Note that the invocation is over; a connection that cannot be used again is discarded."""
        connection = self._connection
        if connection is None:
            return
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            self.discard()
            return
        connection.autocommit = False  # a handler may have changed it
        self._last_used = time.time()

    def discard(self) -> None:
        """Close the connection, if there is one; the next invocation opens another."""
        connection, self._connection = self._connection, None
        # A child that was forked must not say goodbye on its parent's socket.
        if connection is not None and self._pid == os.getpid():
            connection.close()

    def _current(self) -> Connection | None:
        """Return the connection if it can be trusted, without a round trip unless it rested for long."""
        connection = self._connection
        if connection is None:
            return None
        if self._pid != os.getpid() or connection.closed or not self._is_alive(connection):
            self.discard()
            return None
        return connection

    def _is_alive(self, connection: Connection) -> bool:
        pgconn = connection.pgconn
        poller = select.poll()
        poller.register(pgconn.socket, select.POLLIN | select.POLLRDHUP)
        events = poller.poll(0)
        if events:
            # A terminated backend sends its last message before it closes: POLLIN comes with POLLRDHUP.
            if events[0][1] & GONE:
                return False
            pgconn.consume_input()  # a notification or a notice
        idle_seconds = time.time() - self._last_used
        if 0 <= idle_seconds < LONGEST_TRUSTED_IDLE_SECONDS:
            return pgconn.status == ConnStatus.OK
        return _answers(connection, ANSWER_SECONDS)

    def _open(self) -> Connection:
        login = self._credentials.login()
        try:
            connection = self._connect(login)
        except psycopg.OperationalError as error:
            if not (_is_login_failure(error) and self._credentials.can_change):
                _raise_unavailable(self._settings, error)
            connection = self._open_with_fresh_login()
        self._connection, self._pid, self._last_used = connection, os.getpid(), time.time()
        return connection

    def _open_with_fresh_login(self) -> Connection:
        """Try once more with what the secret holds now: the password may have been rotated."""
        self._credentials.forget()
        login = self._credentials.login()
        try:
            return self._connect(login)
        except psycopg.OperationalError as error:
            _raise_unavailable(self._settings, error)

    def _connect(self, login: Login) -> Connection:
        settings = self._settings
        return psycopg.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.database,
            user=login.user,
            password=login.password,
            sslmode=settings.sslmode,
            sslrootcert=settings.sslrootcert,
            connect_timeout=settings.connect_timeout_seconds,
            tcp_user_timeout=TCP_USER_TIMEOUT_MS,
            gssencmode="disable",
            application_name=_application_name(),
            keepalives_idle=KEEPALIVE_IDLE_SECONDS,
            keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
            keepalives_count=KEEPALIVE_COUNT,
        )


def _succeeded(connection: Connection, statement: bytes) -> bool:
    # Below psycopg's cursors: they would send a BEGIN of their own first, which is another round trip.
    try:
        return connection.pgconn.exec_(statement).status == ExecStatus.COMMAND_OK
    except psycopg.OperationalError:
        return False


def _is_lost(connection: Connection) -> bool:
    return connection.pgconn.status != ConnStatus.OK


def _is_pool_busy(connection: Connection) -> bool:
    # PgBouncer closes the client with it. Another try would wait in the same line for as long again.
    return b"query_wait_timeout" in connection.pgconn.error_message


def _answers(connection: Connection, seconds: float) -> bool:
    """Send an empty query and wait for its end with a deadline of our own."""
    pgconn = connection.pgconn
    until = time.monotonic() + seconds
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN | select.POLLRDHUP)
    try:
        pgconn.send_query(b"")
        pgconn.flush()
        while True:
            while not pgconn.is_busy():
                if pgconn.get_result() is None:
                    return pgconn.status == ConnStatus.OK
            left_ms = int((until - time.monotonic()) * 1000)
            if left_ms <= 0 or not poller.poll(left_ms):
                return False
            pgconn.consume_input()
    except psycopg.OperationalError:
        return False


def _is_login_failure(error: psycopg.OperationalError) -> bool:
    # libpq gives no SQLSTATE for a failed login, and PgBouncer says "SASL authentication failed".
    return "authentication failed" in str(error)


def _raise_begin_failed(connection: Connection) -> NoReturn:
    message = connection.pgconn.error_message.decode(errors="replace").strip()
    is_pool_busy = _is_pool_busy(connection)
    connection.close()
    if is_pool_busy:
        raise PoolBusy(f"every server connection of the pool stayed busy; nothing has run: {message}")
    raise ConnectionUnavailable(f"the transaction could not be started; nothing has run: {message}")


def _raise_unavailable(settings: LayerSettings, error: psycopg.OperationalError) -> NoReturn:
    # Chained from None: psycopg's traceback holds the connection parameters, the password among them.
    raise ConnectionUnavailable(
        f"no connection to {settings.host}:{settings.port}, database {settings.database}, user {settings.user}; "
        f"nothing has run: {str(error).strip()}"
    ) from None


def _application_name() -> str:
    """Name the function and its environment in pg_stat_activity."""
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "emberpool")
    log_stream = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "")
    suffix = f"/{log_stream[-8:]}" if log_stream else ""
    return function[: LONGEST_APPLICATION_NAME - len(suffix)] + suffix
