"""The errors of the layer, each named by what the caller should do.

psycopg.OperationalError
    EmberpoolError
        ConnectionUnavailable   retry the invocation later: no connection could be opened, nothing has run
        PoolBusy                retry the invocation later: every server connection stayed busy, nothing has run
        SecretUnavailable       mend the secret or the permission to read it
        DeadlineTooClose        give the function more time: nothing has run
        NoAnswer                repeat the invocation if it wrote nothing outside of its transaction
        CommitOutcomeUnknown    find out by the data whether it was committed before repeating
        NotCommitted            repeat the invocation: the connection was lost and nothing was committed
        TransactionAborted      wrap the statement that may fail in `with connection.transaction():`
ConnectionInUse (a RuntimeError)     end the other use of the one connection first
OutsideInvocation (a RuntimeError)   call it while a handler with @warm_connection runs
SettingsInvalid (in settings, a ValueError)   mend the variable that it names
"""

from __future__ import annotations

try:
    from psycopg import OperationalError
except ImportError:  # a function whose only client is data_client()

    class OperationalError(Exception):  # type: ignore[no-redef]
        """Stands for psycopg's where there is no driver."""


class EmberpoolError(OperationalError):
    """Base of all errors of the layer; a psycopg.OperationalError, so that an `except` you have still works."""


class ConnectionUnavailable(EmberpoolError):  # noqa: N818 (named by what to do)
    """No connection could be opened; nothing of the handler's has run. Retry later."""


class PoolBusy(EmberpoolError):  # noqa: N818 (named by what to do)
    """All server connections stayed busy for the proxy's whole `query_wait`; nothing has run. Retry later."""


class SecretUnavailable(EmberpoolError):  # noqa: N818 (named by what to do)
    """The secret with the password cannot be read or has another shape. Mend it or the permission to read it."""


class DeadlineTooClose(EmberpoolError):  # noqa: N818 (named by what to do)
    """Too little of the invocation's time is left to start; nothing has run. Give the function more time."""


class NoAnswer(EmberpoolError):  # noqa: N818 (named by what happened)
    """The database did not answer a statement until the invocation's end. What was not committed is rolled back."""


class CommitOutcomeUnknown(EmberpoolError):  # noqa: N818 (named by what to do)
    """The connection was lost during COMMIT, or its answer did not come. Find out by the data before repeating."""


class NotCommitted(EmberpoolError):  # noqa: N818 (named by what to do)
    """The connection was lost during COMMIT and the database says that nothing was committed. Repeat the invocation."""


class TransactionAborted(EmberpoolError):  # noqa: N818 (named by what to do)
    """The handler returned after a failed statement: its transaction was rolled back, so nothing was kept.

    Wrap a statement that may fail in `with connection.transaction():` to keep the rest.
    """


class ConnectionInUse(RuntimeError):  # noqa: N818 (named by what is the matter)
    """Somebody else has a transaction on this environment's one connection. End that use first."""


class OutsideInvocation(RuntimeError):  # noqa: N818 (named by what is the matter)
    """There is no current connection: no handler with @warm_connection is running in this process."""
