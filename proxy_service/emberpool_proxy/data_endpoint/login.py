"""Logs in at the local PgBouncer as a caller, over its unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGconn

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import (
    ACCESS_DENIED,
    DATABASE_NOT_FOUND,
    DATABASE_UNAVAILABLE,
    THROTTLED,
    DataError,
)
from emberpool_proxy.data_endpoint.session import Session, SessionLost
from emberpool_proxy.data_endpoint.steps import Step
from emberpool_proxy.data_endpoint.waiting import readable, writable

APPLICATION_NAME = "emberpool-data"
# The answers depend on them, and PgBouncer keeps each client's own. It refuses options at the login, so those that the
# database has otherwise cost one round trip more.
PARAMETERS = {
    b"DateStyle": b"ISO, MDY",
    b"TimeZone": b"UTC",
    b"IntervalStyle": b"postgres",
    b"standard_conforming_strings": b"on",
}
_UTC = frozenset({b"Etc/UTC", b"UTC", b"GMT", b"Etc/GMT", b"UCT", b"Etc/UCT"})

# PgBouncer has one SQLSTATE for all of it. The first that fits counts: it quotes the database's words in its own.
_MEANINGS = (
    ("server login has been failing", DATABASE_UNAVAILABLE, "the pool cannot reach the database"),
    ("connections exceeded", THROTTLED, "this user has as many connections as it may have"),
    ("no more connections allowed", THROTTLED, "the pool has as many clients as it may have"),
    ("no such database", DATABASE_NOT_FOUND, "the pool has no such database"),
    ("authentication failed", ACCESS_DENIED, "the pool does not let this user in: its password may have changed"),
    ("no such user", ACCESS_DENIED, "the pool does not know this user any more"),
    ("login rejected", ACCESS_DENIED, "the pool does not let this user in"),
)


async def log_in(folder: Path, port: int, caller: Caller, seconds: float, name: str = APPLICATION_NAME) -> Session:
    """Return a session at PgBouncer's socket in `folder`. Raises DataError: nothing has run."""
    connection = pq.PGconn.connect_start(_conninfo(folder, port, caller, name))
    session = None
    try:
        async with asyncio.timeout(seconds):
            await _connected(connection)
            session = Session(connection, asyncio.get_running_loop())
            await _set_parameters(session)
            return session
    except TimeoutError:
        _end(connection, session)
        raise DataError(DATABASE_UNAVAILABLE, f"the pool has let nobody in for {seconds:.1f} s") from None
    except SessionLost as error:
        raise refused(error.words) from None
    except BaseException:
        _end(connection, session)
        raise


def refused(words: str) -> DataError:
    """Return the error for a login that PgBouncer, or nobody, has answered so."""
    said = words.rpartition("FATAL:")[2].strip().partition("\n")[0]
    for part, kind, meaning in _MEANINGS:
        if part in said:
            return DataError(kind, f"{meaning} ({said})")
    if "FATAL:" in words:
        return DataError(DATABASE_UNAVAILABLE, f"the pool cannot serve now ({said})")
    return DataError(DATABASE_UNAVAILABLE, "the pool does not answer")


def _conninfo(folder: Path, port: int, caller: Caller, name: str) -> bytes:
    return make_conninfo(
        host=str(folder),
        port=port,
        dbname=caller.entry,
        user=caller.name,
        password=caller.password,
        application_name=name,
        client_encoding="UTF8",
        sslmode="disable",
        gssencmode="disable",
    ).encode()


async def _connected(connection: PGconn) -> None:
    state: int = pq.PollingStatus.WRITING
    while state != pq.PollingStatus.OK:
        if connection.status == pq.ConnStatus.BAD or state == pq.PollingStatus.FAILED:
            raise refused(connection.get_error_message())
        await (readable if state == pq.PollingStatus.READING else writable)(connection.socket)
        state = connection.connect_poll()


async def _set_parameters(session: Session) -> None:
    steps = [
        Step(b"SELECT set_config($1, $2, false)", [name, value], (25, 25))
        for name, value in PARAMETERS.items()
        if (has := session.parameter(name)) != value and not (name == b"TimeZone" and has in _UTC)
    ]
    if steps:
        await session.run(steps)


def _end(connection: PGconn, session: Session | None) -> None:
    if session:
        session.close()
    else:
        connection.finish()
