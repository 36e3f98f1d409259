"""The decorator: gives a handler an open connection and one transaction per invocation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import psycopg
from psycopg import IsolationLevel

from emberpool.declared import declared_connection
from emberpool.invocation import HandlerOptions, Invocation, deadline_of, run

EventT = TypeVar("EventT")
ContextT = TypeVar("ContextT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")

Connection = psycopg.Connection


class _Decorator(Protocol):
    """What `@warm_connection(...)` returns."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[EventT, ContextT, Connection, P], ResultT], /
    ) -> Callable[Concatenate[EventT, ContextT, P], ResultT]: ...

    @overload
    def __call__(self, function: Callable[[EventT, ContextT], ResultT], /) -> Callable[[EventT, ContextT], ResultT]: ...


@overload
def warm_connection(
    function: Callable[Concatenate[EventT, ContextT, Connection, P], ResultT], /
) -> Callable[Concatenate[EventT, ContextT, P], ResultT]: ...


@overload
def warm_connection(function: Callable[[EventT, ContextT], ResultT], /) -> Callable[[EventT, ContextT], ResultT]: ...


@overload
def warm_connection(
    *,
    transaction: bool = ...,
    read_only: bool = ...,
    isolation_level: IsolationLevel | None = ...,
    idempotent: bool = ...,
    resolve_commit: bool = ...,
    deadline_margin_ms: int | None = ...,
    database: str | None = ...,
    prewarm: bool = ...,
) -> _Decorator: ...


def warm_connection(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Call a handler `(event, context, connection)` or `(event, context)` on this environment's warm connection.

    The connection is opened once, checked before each invocation and replaced when it is dead. Each invocation is
    one transaction: committed when the handler returns, rolled back when it raises; no statement outlives the
    invocation. Use it with or without parentheses; a handler without the third parameter, and whatever it calls, gets
    the connection from `emberpool.current_connection()`.

    transaction: False gives a connection in autocommit mode. read_only, isolation_level: of that transaction.
    idempotent: the whole handler may run once more after a lost connection, a serialization failure or a deadlock.
    resolve_commit: after a connection lost during COMMIT the database is asked what became of it.
    deadline_margin_ms: milliseconds kept for the handler's own end (default: EMBERPOOL_DEADLINE_MARGIN_MS).
    database: the name of one of several databases, configured as EMBERPOOL_<NAME>_HOST and so on.
    prewarm: open the connection in the background while the module is still being loaded.

    Raises SettingsInvalid where it is applied, when an EMBERPOOL_ variable is missing or malformed; at an invocation
    ConnectionUnavailable, PoolBusy, SecretUnavailable or DeadlineTooClose (nothing has run), CommitOutcomeUnknown,
    NotCommitted or TransactionAborted.
    """
    chosen = HandlerOptions(**options)
    decorate = functools.partial(_decorated, options=chosen)
    return decorate if function is None else decorate(function)


def _decorated(function: Callable[..., Any], options: HandlerOptions) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__} is async: Lambda's Python runtime does not await handlers")
    warm = declared_connection(options)
    handler = function if _takes_connection(function) else _without_connection(function)

    @functools.wraps(function)
    def with_connection(event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        call = _with_more(handler, args, kwargs) if args or kwargs else handler
        return run(warm, options, call, event, context)

    @functools.wraps(function)
    def generating(event: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        # The transaction spans the iteration: it is not over when the generator is made.
        with Invocation(warm, options, deadline_of(warm, options, context), context) as connection:
            yield from handler(event, context, connection, *args, **kwargs)

    return generating if inspect.isgeneratorfunction(inspect.unwrap(function)) else with_connection


def _without_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    def handler(event: Any, context: Any, connection: Any, /, *args: Any, **kwargs: Any) -> Any:
        del connection
        return function(event, context, *args, **kwargs)

    return handler


def _with_more(handler: Callable[..., Any], args: Any, kwargs: Any) -> Callable[..., Any]:
    """Return the handler with what a decorator inside passes on beside event and context; Lambda gives no more."""
    return lambda event, context, connection: handler(event, context, connection, *args, **kwargs)


def _takes_connection(function: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.kind in positional for parameter in parameters) >= 3  # noqa: PLR2004 (event, context, connection)
