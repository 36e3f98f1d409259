"""Opens a connection: its parameters, which failures are worth another try, and what is said of the others.

Knows nothing of warm invocations; the one connection that is kept is connection's.
"""

from __future__ import annotations

import math
import os
import random
import re
import select
import time
from typing import NoReturn, overload

import psycopg

from emberpool import telemetry
from emberpool.authority_file import authority_file
from emberpool.credentials import Credentials, Login
from emberpool.deadline import NO_DEADLINE, Deadline
from emberpool.errors import ConnectionUnavailable, SecretUnavailable
from emberpool.session import LookingCursor, SessionConnection
from emberpool.settings import LayerSettings
from emberpool.waiting import connected, within

TCP_USER_TIMEOUT_MS = 5000  # keepalives are off while data is unacknowledged; this bounds that case
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_COUNT = 30, 5, 3
# libpq looks for a client certificate in the home folder, and gives up where it may not look: container images have
# /root for one, which the function's user cannot read. Below a file there is nothing, for nobody.
NO_CLIENT_CERTIFICATE = f"{os.devnull}/none"
LONGEST_APPLICATION_NAME = 63  # PostgreSQL cuts it there
NO_AUTHORITY = "there is no CA certificate"

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 1.0
# The system's: environments that were restored from one snapshot share the state of Python's own.
_random = random.SystemRandom()
# Trying again does not help: these need a hand.
PERMANENT = re.compile(
    r"does not exist|no such database|Name or service not known|no pg_hba.conf entry|certificate"
    r"|SSL (?:was )?required|login rejected|no authentication method|not allowed"
)


def open_connection(
    settings: LayerSettings, credentials: Credentials, retry_until: float, deadline: Deadline = NO_DEADLINE
) -> SessionConnection:
    """Open a connection, trying again until `retry_until` (monotonic seconds) with decorrelated jitter.

    It ends with the invocation's `deadline` at the latest, whatever does not answer. Raises ConnectionUnavailable,
    SecretUnavailable or DeadlineTooClose. Source of the jitter: "Exponential Backoff and Jitter", AWS Architecture
    Blog, 2015.
    """
    deadline.statement_timeout_ms("nothing has run")
    login = _login(settings, credentials, deadline)
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        try:
            return _connect(settings, login, deadline)
        except psycopg.OperationalError as error:
            if _is_login_failure(error) or _is_authority_failure(settings, error):
                other = _login(settings, credentials, deadline, refused=login)
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
    return time.monotonic() + min(settings.connect_retry_seconds, max(seconds_left(deadline), 0))


def seconds_left(deadline: Deadline) -> float:
    """Return how long the invocation's statements may still take, infinity without a deadline."""
    left_ms = deadline.left_ms()
    return math.inf if left_ms is None else left_ms / 1000


@overload
def _login(settings: LayerSettings, credentials: Credentials, deadline: Deadline) -> Login: ...
@overload
def _login(settings: LayerSettings, credentials: Credentials, deadline: Deadline, refused: Login) -> Login | None: ...
def _login(
    settings: LayerSettings, credentials: Credentials, deadline: Deadline, refused: Login | None = None
) -> Login | None:
    if refused is None and credentials.is_at_hand:
        return credentials.login()
    seconds = seconds_left(deadline)
    try:
        if refused is None:
            return within(seconds, credentials.login)
        return within(seconds, lambda: credentials.after_refusal(refused))
    except TimeoutError:
        raise SecretUnavailable(
            f"the login for {settings.host} was not there after {seconds:.1f} s, all that this invocation had; "
            f"nothing has run. Raise the function's timeout, or let it reach {_source_of_login(settings)} faster"
        ) from None


def _source_of_login(settings: LayerSettings) -> str:
    return "its role's credentials" if settings.auth == "iam" else f"the secret {settings.secret_arn}"


def _connect(settings: LayerSettings, login: Login, deadline: Deadline = NO_DEADLINE) -> SessionConnection:
    pgconn = connected(
        settings.host,
        settings.port,
        min(settings.connect_timeout_seconds, seconds_left(deadline)),
        settings.address_timeout_seconds,
        dbname=settings.database,
        user=login.user,
        password=login.password,
        sslmode=settings.sslmode,
        sslrootcert=_sslrootcert(settings, login),
        sslcert=os.environ.get("PGSSLCERT") or NO_CLIENT_CERTIFICATE,
        tcp_user_timeout=TCP_USER_TIMEOUT_MS,
        keepalives_idle=KEEPALIVE_IDLE_SECONDS,
        keepalives_interval=KEEPALIVE_INTERVAL_SECONDS,
        keepalives_count=KEEPALIVE_COUNT,
        gssencmode="disable",
        application_name=_application_name(),
    )
    connection = SessionConnection(pgconn)
    connection.cursor_factory = LookingCursor
    connection.on_hazard = _warn_of_session_state
    connection.poller.register(pgconn.socket, select.POLLIN | select.POLLRDHUP)
    return connection


def _sslrootcert(settings: LayerSettings, login: Login) -> str | None:
    if settings.sslrootcert or not settings.verifies:
        return settings.sslrootcert
    if login.ca_certificate is None:
        raise psycopg.OperationalError(
            f"{NO_AUTHORITY} in the secret {settings.secret_arn}: the proxy writes it when it starts; is it running, "
            f"and may its role write the secret? {settings.variable('sslrootcert')} can name a file instead"
        )
    try:
        return authority_file(login.ca_certificate)
    except OSError as error:
        raise psycopg.OperationalError(
            f"the CA's certificate cannot be written to {error.filename}: {error.strerror}"
        ) from None


def _warn_of_session_state(kind: str) -> None:
    telemetry.warned(
        f"session_state_{kind.lower().replace(' ', '_')}",
        f"{kind}: behind transaction pooling the next transaction may run on another server connection, and this one's "
        "state may reach somebody else; see emberpool's documentation of the layer",
    )


def _is_login_failure(error: psycopg.OperationalError) -> bool:
    # libpq gives no SQLSTATE for a failed login, and PgBouncer says "SASL authentication failed".
    return "authentication failed" in str(error)


def _is_authority_failure(settings: LayerSettings, error: psycopg.OperationalError) -> bool:
    """Say whether another reading of the secret may help: the proxy may have a new CA since."""
    is_of_the_secret = settings.verifies and not settings.sslrootcert
    return is_of_the_secret and ("certificate verify failed" in str(error) or NO_AUTHORITY in str(error))


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
