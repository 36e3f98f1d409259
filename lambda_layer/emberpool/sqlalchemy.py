"""SQLAlchemy on the warm connection of this environment: an Engine whose pool holds that one connection.

    from emberpool import warm_connection
    from emberpool.sqlalchemy import engine

    orders = engine()

    @warm_connection(transaction=False)
    def handler(event, context):
        with orders.begin() as connection:
            ...

Owns the pool. SQLAlchemy is imported by this module only, and is the user's to install: `emberpool[sqlalchemy]`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import sqlalchemy
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord

from emberpool import declared
from emberpool.commit import commit
from emberpool.connection import WarmConnection
from emberpool.deadline import NO_DEADLINE
from emberpool.errors import ConnectionInUse, TransactionAborted
from emberpool.invocation import continue_on, running_connection
from emberpool.session import LookingCursor, SessionConnection
from emberpool.settings import LayerSettings

LOAN, ADAPTERS = "emberpool_loan", "emberpool_adapters"  # in a record's info

State = dict[str, Any]  # attributes of a connection
# What SQLAlchemy counts on, whatever a handler has set.
CHECKED_OUT: State = {
    "autocommit": False,
    "row_factory": tuple_row,
    "cursor_factory": LookingCursor,
    "server_cursor_factory": psycopg.ServerCursor,
}
# Outside of an invocation there is nobody's choice of transactions either.
OUTSIDE: State = {**CHECKED_OUT, "isolation_level": None, "read_only": None, "deferrable": None}


def engine(database: str | None = None, *, resolve_commit: bool = False, **engine_options: Any) -> sqlalchemy.Engine:
    """Return an Engine on this environment's warm connection, the one that @warm_connection uses. Opens nothing.

    Make it once, beside the handler. Closing a Session or Connection rolls back what is open and gives the warm
    connection back. In a handler use @warm_connection(transaction=False): the transactions are SQLAlchemy's, of the
    decorator's read_only and isolation_level, and end with the invocation. Without a handler there is no deadline.

    database: the name of one of several databases, as for @warm_connection.
    resolve_commit: after a connection lost during COMMIT the database is asked what became of it, as there. When it was
    committed, the Session or Connection is to be closed next: its server connection is gone.
    engine_options: as of sqlalchemy.create_engine, without those of a pool.

    Raises SettingsInvalid. A checkout raises ConnectionInUse when another Session or Connection has the one
    connection, or a handler with a transaction of its own; and, as `orig` of a sqlalchemy.exc.OperationalError,
    ConnectionUnavailable or SecretUnavailable (nothing has run) and DeadlineTooClose (the statement was not sent). A
    commit raises TransactionAborted when a failed statement has undone its transaction; and, as such an `orig`,
    CommitOutcomeUnknown when the connection was lost meanwhile, or NotCommitted.
    """
    settings = LayerSettings.from_environment(name=database)
    if level := engine_options.pop("isolation_level", None):
        # As an option of each checkout: the dialect would only set it once, when a connection was opened.
        engine_options["execution_options"] = {"isolation_level": level, **engine_options.get("execution_options", {})}
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=settings.user,
        host=settings.host,
        port=settings.port,
        database=settings.database,
    )  # only shown: the connection is the layer's
    warm = declared.shared_connection(settings)
    made = sqlalchemy.create_engine(url, pool=WarmPool(warm, database), **engine_options)
    _commit_as_the_layer_does(made.dialect, warm, resolve_commit)
    sqlalchemy.event.listen(made, "commit", _check_is_not_aborted)
    return made


@dataclass(frozen=True)
class _Loan:
    """A connection that is checked out, and how it was before."""

    connection: SessionConnection
    is_inside_invocation: bool
    state: State
    adapters: AdaptersMap | None


class WarmPool(Pool):
    """A pool of the one warm connection, which belongs to the environment and not to the pool.

    A record of SQLAlchemy's lives as long as the connection behind it, so "connect" listeners run once for each.
    """

    def __init__(self, warm: WarmConnection, database: str | None, **pool_options: Any) -> None:
        super().__init__(self._lent_connection, **pool_options)
        self._warm = warm
        self._database = database
        self._record: ConnectionPoolEntry | None = None
        self._lent: SessionConnection | None = None

    def status(self) -> str:
        """Say in one line what the pool holds."""
        return f"WarmPool of {self._warm.settings.host}: {'open' if self._warm.is_open else 'not open'}"

    def recreate(self) -> WarmPool:
        """Return a pool without records, as Engine.dispose() wants it."""
        return WarmPool(
            self._warm,
            self._database,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close the warm connection, unless it is checked out or an invocation has it."""
        record, self._record = self._record, None
        if record is not None and not record.in_use and running_connection(self._database) is None:
            record.close()

    def _lent_connection(self) -> Any:
        """Return what `_do_get` has just taken, to the record that it makes."""
        return self._lent

    def _do_get(self) -> ConnectionPoolEntry:
        record = self._record
        if record is not None and not record.in_use and _is_invalidated(record):
            record.close()
        loan = self._lend()
        try:
            record = self._record_of(loan.connection)
        except BaseException:
            self._end(loan)
            raise
        record.info[LOAN] = loan
        return record

    def _record_of(self, connection: SessionConnection) -> ConnectionPoolEntry:
        """Return the record that the connection has had since it was opened, or a new one."""
        record = self._record
        if record is not None and record.driver_connection is connection:
            connection._adapters = record.info[ADAPTERS]
            return record
        connection._adapters = AdaptersMap(cast("PGDialect_psycopg", self._dialect)._psycopg_adapters_map)
        self._lent = connection
        try:
            record = self._create_connection()
        finally:
            self._lent = None
        record.info[ADAPTERS] = connection._adapters
        self._record = record
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        loan = record.info.pop(LOAN, None)
        # One that was detached stays lent until its new owner has closed it.
        if loan is not None and (record.driver_connection is loan.connection or loan.connection.closed):
            self._end(loan)

    def _lend(self) -> _Loan:
        """Take the connection: checked without a round trip, replaced when it is dead."""
        running = running_connection(self._database)
        if running is None:
            connection = self._warm.lend(NO_DEADLINE)
        else:
            _check_is_free(running)
            connection = self._warm.lend(running.deadline)
            if connection is not running:
                _set_state(connection, _state(running))
                continue_on(self._database, connection)
        loan = _Loan(connection, running is not None, _state(connection), connection._adapters)
        _set_state(connection, OUTSIDE if running is None else CHECKED_OUT)
        return loan

    def _end(self, loan: _Loan) -> None:
        """Give the connection back as it was."""
        connection = loan.connection
        if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.IDLE:
            connection.close()  # SQLAlchemy has rolled back by now, so this one cannot be trusted
        if not connection.closed:
            connection._adapters = loan.adapters
            _set_state(connection, loan.state)
        self._warm.take_back(connection)
        if not loan.is_inside_invocation:
            self._warm.rest()


def _commit_as_the_layer_does(dialect: Dialect, warm: WarmConnection, resolve_commit: bool) -> None:
    """Let COMMIT say what is known of its outcome; what this engine's dialect raises SQLAlchemy wraps for its users."""
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback
    resolved: weakref.WeakSet[SessionConnection] = weakref.WeakSet()

    def commit_or_say(dbapi_connection: PoolProxiedConnection) -> None:
        connection = cast("SessionConnection", dbapi_connection.driver_connection)
        if connection.closed:
            do_commit(dbapi_connection)  # which raises
        commit(warm, connection, connection.deadline, resolve_commit)
        if connection.closed:
            resolved.add(connection)

    def rollback(dbapi_connection: PoolProxiedConnection) -> None:
        # When it is returned to the pool: there is nothing to be rolled back, and no connection to do it on.
        if dbapi_connection.driver_connection not in resolved:
            do_rollback(dbapi_connection)

    dialect.do_commit = commit_or_say  # type: ignore[method-assign]
    dialect.do_rollback = rollback  # type: ignore[method-assign]


def _check_is_not_aborted(checked_out: sqlalchemy.Connection) -> None:
    connection = checked_out.connection.driver_connection
    if connection is not None and connection.pgconn.transaction_status == TransactionStatus.INERROR:
        # COMMIT would answer ROLLBACK without an error, and the block would acknowledge lost work.
        raise TransactionAborted(
            "a statement of this transaction failed, so it was rolled back; wrap a statement that may fail in "
            "`with connection.begin_nested():`"
        )


def _is_invalidated(record: ConnectionPoolEntry) -> bool:
    return cast("_ConnectionRecord", record)._is_hard_or_soft_invalidated()


def _check_is_free(running: SessionConnection) -> None:
    if running.closed or running.is_lent:
        return  # it is replaced, or the loan says who has it
    if not running.autocommit or running.pgconn.transaction_status != TransactionStatus.IDLE:
        # To join it would make engine.begin() return before anything is committed, and its commit end the handler's.
        raise ConnectionInUse(
            "the handler that runs has a transaction of its own on this environment's one connection, and SQLAlchemy's "
            "would be mixed with it: decorate the handler with @warm_connection(transaction=False)"
        )


def _state(connection: SessionConnection) -> State:
    return {name: getattr(connection, name) for name in OUTSIDE}


def _set_state(connection: SessionConnection, state: State) -> None:
    for name, value in state.items():
        # Only what differs: each assignment may make psycopg put its BEGIN together anew.
        if getattr(connection, name) != value:
            setattr(connection, name, value)
