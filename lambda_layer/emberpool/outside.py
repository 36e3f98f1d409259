"""A connection for scripts, migrations and tests: by the function's settings, but outside of any handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow

from emberpool.commit import commit
from emberpool.connection import WarmConnection
from emberpool.deadline import NO_DEADLINE
from emberpool.settings import LayerSettings


@contextmanager
def connect(database: str | None = None) -> Iterator[psycopg.Connection[TupleRow]]:
    """Open a connection of its own by the EMBERPOOL_ variables, and close it at the end of the `with` block.

    The block is one transaction without a deadline: committed at its end, rolled back when it raises.
    database: the name of one of several databases, as for @warm_connection.

    Raises SettingsInvalid; ConnectionUnavailable or SecretUnavailable (nothing has run); at the end TransactionAborted
    when a failed statement has undone the block, or CommitOutcomeUnknown.
    """
    warm = WarmConnection(LayerSettings.from_environment(name=database))
    connection = warm.acquire(NO_DEADLINE)
    try:
        yield connection
        commit(warm, connection, NO_DEADLINE, resolve=False)
    finally:
        connection.close()  # the server rolls back what is still open
