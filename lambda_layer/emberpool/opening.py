"""Opens a connection: its parameters, which failures are worth another try, and what is said of the others.

Knows nothing of warm invocations; the one connection that is kept is connection's.
"""

from __future__ import annotations

import os
import random
import re
import select
import time
from typing import NoReturn

import psycopg

from emberpool import telemetry
from emberpool.credentials import Credentials, Login
from emberpool.deadline import Deadline
from emberpool.errors import ConnectionUnavailable
from emberpool.session import LookingCursor, SessionConnection
from emberpool.settings import LayerSettings

TCP_USER_TIMEOUT_MS = 5000  # keepalives are off while data is unacknowledged; this bounds that case
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_COUNT = 30, 5, 3
LONGEST_APPLICATION_NAME = 63  # PostgreSQL cuts it there

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 1.0
# The system's: environments that were restored from one snapshot share the state of Python's own.
_random = random.SystemRandom()
# Trying again does not help: these need a hand.
PERMANENT = re.compile(
    r"does not exist|no such database|Name or service not known|no pg_hba.conf entry|certificate"
    r"|SSL (?:was )?required|login rejected|no authentication method|not allowed"
)


def open_connection(settings: LayerSettings, credentials: Credentials, retry_until: float) -> SessionConnection:
    """Open a connection, trying again until `retry_until` (monotonic seconds) with decorrelated jitter.

    Raises ConnectionUnavailable or SecretUnavailable. Source of the jitter: "Exponential Backoff and Jitter", AWS
    Architecture Blog, 2015.
    """
    login = credentials.login()
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        try:
            return _connect(settings, login)
        except psycopg.OperationalError as error:
            if _is_login_failure(error):
                other = credentials.after_refusal(login)
                if other is None:
                    _raise_unavailable(settings, error)
                telemetry.retried("login refused")
                login = other
                continue
            pause = min(LONGEST_PAUSE_SECONDS, _random.uniform(SHORTEST_PAUSE_SECONDS, pause * 3))
            if PERMANENT.search(str(error)) or time.monotonic() + pause > retry_until:
                _raise_unavailable(settings, error)
            telemetry.retried("connection could not be opened")
            time.sleep(pause)


def retry_until(settings: LayerSettings, deadline: Deadline) -> float:
    """Return until when a connection that cannot be opened is tried again, in monotonic seconds."""
    left_ms = deadline.left_ms()
    seconds = settings.connect_retry_seconds
    return time.monotonic() + (seconds if left_ms is None else min(seconds, max(left_ms / 1000, 0)))


def _connect(settings: LayerSettings, login: Login) -> SessionConnection:
    connection = SessionConnection.connect(
        host=settings.host,
        port=settings.port,
        dbname=settings.database,
        user=login.user,
        password=login.password,
        sslmode=settings.sslmode,
        sslrootcert=settings.sslrootcert,
        connect_timeout=settings.connect_timeout_seconds,
        tcp_user_timeout=TCP_USER_TIMEOUT_MS,
        keepalives_idle=KEEPALIVE_IDLE_SECONDS,
        keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
        keepalives_count=KEEPALIVE_COUNT,
        gssencmode="disable",
        application_name=_application_name(),
        cursor_factory=LookingCursor,
    )
    connection.on_hazard = _warn_of_session_state
    connection.poller.register(connection.pgconn.socket, select.POLLIN | select.POLLRDHUP)
    return connection


def _warn_of_session_state(kind: str) -> None:
    telemetry.warned(
        f"session_state_{kind.lower().replace(' ', '_')}",
        f"{kind}: behind transaction pooling the next transaction may run on another server connection, and this one's "
        "state may reach somebody else; see emberpool's documentation of the layer",
    )


def _is_login_failure(error: psycopg.OperationalError) -> bool:
    # libpq gives no SQLSTATE for a failed login, and PgBouncer says "SASL authentication failed".
    return "authentication failed" in str(error)


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
