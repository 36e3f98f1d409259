"""The decorator: gives a handler an open connection and one transaction per invocation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, overload

import psycopg
from psycopg.pq import TransactionStatus

from emberpool.connection import Connection, WarmConnection
from emberpool.deadline import statement_timeout_ms
from emberpool.errors import CommitOutcomeUnknown, ConnectionUnavailable, TransactionAborted
from emberpool.settings import LayerSettings

EventT = TypeVar("EventT")
ContextT = TypeVar("ContextT")
ResultT = TypeVar("ResultT")

ConnectedHandler = Callable[[EventT, ContextT, Connection], ResultT]
Handler = Callable[[EventT, ContextT], ResultT]

# One connection per environment, however many handlers a module decorates.
_shared_connection = functools.cache(WarmConnection)


@overload
def warm_connection(function: ConnectedHandler[EventT, ContextT, ResultT], /) -> Handler[EventT, ContextT, ResultT]: ...


@overload
def warm_connection() -> Callable[
    [ConnectedHandler[EventT, ContextT, ResultT]], Handler[EventT, ContextT, ResultT]
]: ...


def warm_connection(function: ConnectedHandler[EventT, ContextT, ResultT] | None = None, /) -> object:
    """Call a handler `(event, context, connection)` with this environment's warm psycopg connection.

    The connection is opened once, checked before each invocation and replaced when it is dead. Each invocation is
    one transaction: committed when the handler returns, rolled back when it raises; no statement outlives the
    invocation. Use it with or without parentheses.

    Raises SettingsInvalid where it is applied, when an EMBERPOOL_ variable is missing or malformed; at an invocation
    ConnectionUnavailable, PoolBusy, SecretUnavailable or DeadlineTooClose (nothing has run), CommitOutcomeUnknown
    or TransactionAborted.
    """
    if function is None:
        return _decorated
    return _decorated(function)


def _decorated(function: ConnectedHandler[EventT, ContextT, ResultT]) -> Handler[EventT, ContextT, ResultT]:
    settings = LayerSettings.from_environment()

    @functools.wraps(function)
    def with_connection(event: EventT, context: ContextT) -> ResultT:
        warm = _shared_connection(settings)
        connection = warm.begin(statement_timeout_ms(context, settings.deadline_margin_ms))
        try:
            result = function(event, context, connection)
            _commit(connection)
        except BaseException:
            _roll_back(connection)
            raise
        finally:
            warm.rest()
        return result

    return with_connection


def _commit(connection: Connection) -> None:
    if connection.broken:
        raise ConnectionUnavailable("the connection was lost during the handler: its transaction was rolled back")
    if connection.closed:
        return  # the handler closed it, for example by `with connection:`, which commits
    if connection.pgconn.transaction_status == TransactionStatus.INERROR:
        # COMMIT would answer ROLLBACK without an error, and the invocation would acknowledge lost work.
        raise TransactionAborted(
            "a statement of this invocation failed, so its transaction was rolled back; wrap a statement that may "
            "fail in `with connection.transaction():`"
        )
    try:
        connection.commit()
    except psycopg.OperationalError as error:
        if connection.broken:
            raise CommitOutcomeUnknown(
                "the connection was lost during COMMIT: whether it was committed is unknown"
            ) from error
        raise


def _roll_back(connection: Connection) -> None:
    try:
        if not connection.closed:
            connection.rollback()
    except psycopg.Error:
        # The handler's own exception is what matters; a lost connection rolls back by itself.
        connection.close()
