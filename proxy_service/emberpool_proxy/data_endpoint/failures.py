"""What a failed statement, or a lost connection, is called in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import pq
from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.errors import (
    DATABASE_ERROR,
    DATABASE_UNAVAILABLE,
    SERVICE_UNAVAILABLE,
    THROTTLED,
    DataError,
)
from emberpool_proxy.data_endpoint.parameters import missing
from emberpool_proxy.data_endpoint.session import SessionLost
from emberpool_proxy.data_endpoint.sql_text import CompiledSql
from emberpool_proxy.data_endpoint.steps import Outcome

_FAILED = pq.ExecStatus.FATAL_ERROR
_FIELD = pq.DiagnosticField
QUERY_CANCELLED, SYNTAX_ERROR = "57014", "42601"
ABORTED = "25P02"

# What PgBouncer ends a connection with before it has sent the statement on: it may be sent again. Of a transaction it
# had sent some, so there this does not count.
_NEVER_SENT = (
    ("query_wait_timeout", THROTTLED, "the pool had no free connection to the database in time; send fewer at once"),
    ("server login has been failing", DATABASE_UNAVAILABLE, "the pool cannot reach the database"),
    ("client_login_timeout", DATABASE_UNAVAILABLE, "the pool cannot reach the database"),
    ("server shutting down", SERVICE_UNAVAILABLE, "this task's pool is stopping; try again"),
    ("client_idle_timeout", SERVICE_UNAVAILABLE, "the connection was idle for too long; try again"),
)


def failed(outcomes: Sequence[Outcome]) -> PGresult | None:
    """Return the error of the first step that failed, those after it were skipped; None if none did."""
    for outcome in outcomes:
        if outcome[-1].status == _FAILED:
            return outcome[-1]
    return None


def sqlstate(error: PGresult) -> str:
    """Return the SQLSTATE; empty for an error of libpq's own."""
    return _text(error, _FIELD.SQLSTATE)


def is_of_parse(error: PGresult) -> bool:
    """Whether the statement itself was refused: not by what it called, so nothing of it has run."""
    return not any(error.error_field(field) for field in (_FIELD.CONTEXT, _FIELD.INTERNAL_QUERY))


def is_stale_plan(error: PGresult) -> bool:
    """Whether PostgreSQL cannot run what it has prepared: gone, or its columns have changed. Nothing has run."""
    if sqlstate(error) == "26000":
        return is_of_parse(error)
    return sqlstate(error) == "0A000" and error.error_field(_FIELD.SOURCE_FUNCTION) == b"RevalidateCachedQuery"


def database_error(error: PGresult, compiled: CompiledSql | None = None) -> DataError:
    """Return PostgreSQL's error in the form of the service; positions count in what the user has written."""
    words = [f"ERROR: {_text(error, _FIELD.MESSAGE_PRIMARY) or error.get_error_message()}"]
    for name, field in (("Detail", _FIELD.MESSAGE_DETAIL), ("Hint", _FIELD.MESSAGE_HINT)):
        if said := _text(error, field):
            words.append(f"\n  {name}: {said}")
    position, state = _text(error, _FIELD.STATEMENT_POSITION), sqlstate(error)
    if position and compiled:
        if state == SYNTAX_ERROR and (name := compiled.missing_name(int(position))):
            return missing(name)
        words.append(f"; Position: {compiled.position_in_source(int(position))}")
    if state:
        words.append(f"; SQLState: {state}")
    return DataError(DATABASE_ERROR, "".join(words))


def lost(error: SessionLost, in_transaction: bool = False, is_sent: bool = False) -> DataError:
    """Return what to say when the connection ended while a statement ran: 5xx only if it cannot have run.

    `is_sent` when PgBouncer had a server connection for it already.
    """
    said = _text(error.last, _FIELD.MESSAGE_PRIMARY) if error.last else ""
    if in_transaction:
        return DataError(
            DATABASE_ERROR,
            f"ERROR: the connection to the database was lost ({said or _first_line(error.words)}): the transaction is "
            "rolled back; SQLState: 08006",
        )
    for part, kind, meaning in _NEVER_SENT:
        if part in said and not is_sent:
            return DataError(kind, f"{meaning} ({said})")
    return DataError(
        DATABASE_ERROR,
        f"ERROR: the connection to the database was lost while the statement ran "
        f"({said or _first_line(error.words)}): the outcome is unknown; SQLState: 08007",
    )


def _text(error: PGresult, field: pq.DiagnosticField) -> str:
    return (error.error_field(field) or b"").decode("utf-8", "replace")


def _first_line(words: str) -> str:
    return words.strip().partition("\n")[0].removeprefix("consuming input failed: ")
