"""The end of a transaction: COMMIT, and what is known when the connection is lost during it."""

from __future__ import annotations

import time
from typing import Literal

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from emberpool import telemetry
from emberpool.connection import WarmConnection
from emberpool.deadline import Deadline
from emberpool.errors import CommitOutcomeUnknown, ConnectionUnavailable, NotCommitted, TransactionAborted
from emberpool.session import SessionConnection

Outcome = Literal["committed", "aborted", "unknown"]

ASK_AGAIN_SECONDS = 0.05
LONGEST_ASKING_SECONDS = 10.0  # without a deadline
INTRANS = TransactionStatus.INTRANS
COMMIT_PATIENCE_SECONDS = 1.0  # for a thread of the handler's that is about to end

CLOSED_IN_TRANSACTION = (
    "the handler closed the connection inside its transaction, so what it did was rolled back although it returned "
    "without an error: leave out connection.close(), as the layer commits when the handler returns and keeps the "
    "connection, or call connection.commit() before it"
)


def commit(warm: WarmConnection, connection: SessionConnection, deadline: Deadline, resolve: bool) -> None:
    """Commit what the handler did, or say why nothing was kept.

    With `resolve` a connection that is lost meanwhile is looked into on a new one. Raises ConnectionUnavailable (lost
    before the commit), TransactionAborted, CommitOutcomeUnknown, or NotCommitted.
    """
    if (connection.pgconn.transaction_status != INTRANS or connection.lock.locked()) and not _is_open(connection):
        return
    transaction_id = _transaction_id(connection) if resolve else None
    try:
        connection.commit()
    except psycopg.OperationalError as error:
        if not _is_lost(connection):
            raise
        if resolve:
            _raise_unless_committed(warm, transaction_id, deadline, error)
            return
        raise CommitOutcomeUnknown(
            "the connection was lost during COMMIT: whether it was committed is unknown"
        ) from error


def _is_open(connection: SessionConnection) -> bool:
    """Say whether there is a transaction to be committed. Raises why there cannot be."""
    if _is_lost(connection):
        raise ConnectionUnavailable("the connection was lost during the handler: its transaction was rolled back")
    if connection.closed:
        # `with connection:` commits before it closes; another close() does not.
        if connection.was_closed_in_transaction:
            telemetry.warned("connection_closed_in_transaction", CLOSED_IN_TRANSACTION)
        return False
    if connection.is_held(COMMIT_PATIENCE_SECONDS):
        raise TransactionAborted(
            "the handler returned while a stream, a COPY or another thread still used the connection, so its "
            "transaction was rolled back; end those first, best by `with` or contextlib.closing()"
        )
    if connection.pgconn.transaction_status == TransactionStatus.INERROR:
        # COMMIT would answer ROLLBACK without an error, and the invocation would acknowledge lost work.
        raise TransactionAborted(
            "a statement of this invocation failed, so its transaction was rolled back; wrap a statement that may "
            "fail in `with connection.transaction():`"
        )
    return connection.pgconn.transaction_status != TransactionStatus.IDLE


def _is_lost(connection: SessionConnection) -> bool:
    return connection.broken


def _transaction_id(connection: SessionConnection) -> str | None:
    """Return the id under which the database remembers this transaction; None when it wrote nothing."""
    # The handler may have changed the connection's row_factory.
    cursor = connection.cursor(row_factory=tuple_row)
    row = cursor.execute("select pg_current_xact_id_if_assigned()::text").fetchone()
    return row[0] if row else None


def _raise_unless_committed(
    warm: WarmConnection, transaction_id: str | None, deadline: Deadline, error: psycopg.OperationalError
) -> None:
    if transaction_id is None:
        return  # nothing was written, so nothing can be lost
    telemetry.retried("outcome of a commit looked up")
    outcome = _outcome(warm, transaction_id, deadline)
    if outcome == "aborted":
        raise NotCommitted("the connection was lost during COMMIT and nothing was committed") from error
    if outcome == "unknown":
        raise CommitOutcomeUnknown(
            f"the connection was lost during COMMIT, and the database did not say in time what became of transaction "
            f"{transaction_id}"
        ) from error


def _outcome(warm: WarmConnection, transaction_id: str, deadline: Deadline) -> Outcome:
    """Ask the database on a new connection until it knows, the deadline is near, or it has forgotten."""
    until = time.time() + LONGEST_ASKING_SECONDS if deadline.last_statement_at is None else deadline.last_statement_at
    warm.discard()
    while time.time() < until:
        try:
            connection = warm.begin(deadline, None, read_only=True)
            row = connection.execute("select pg_xact_status(%s::xid8)", [transaction_id]).fetchone()
            connection.rollback()
        except psycopg.OperationalError:
            warm.discard()
            row = ("in progress",)
        if row is None or row[0] is None:
            return "unknown"  # too long ago: the database has forgotten it
        if row[0] != "in progress":
            return "committed" if row[0] == "committed" else "aborted"
        time.sleep(ASK_AGAIN_SECONDS)
    return "unknown"
