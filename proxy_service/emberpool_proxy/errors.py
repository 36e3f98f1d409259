"""The errors of the proxy, each named by what to do.

ProxyError
    PgbouncerUnusable    install PgBouncer 1.24 or newer, or mend what its last log lines say
    RunFolderUnusable    give the proxy a folder that it can write
    PortTaken            free the port that it names or choose another
    AgentUnusable        read the agent's log lines above it: it keeps crashing
    AgentRefused         mend what the agent's last log line says
    AwsCallFailed        give the task's role what the message names, or a way to AWS
        SecretUnreadable     the same for a secret, or write it in the form that the message names
        SecretAlreadyWritten read the secret: another task was first
    ClientUsersClash     give every secret of a client, and every role, a user name of its own
    DatabaseLoginUnusable  mend the password that the message names: PgBouncer cannot log in with it
    BudgetUnusable       mend what keeps the tasks from sharing their budget: settings, a grant, a pooler in between
    CertificateUnusable  mend the certificate, key or CA file that it names
    StatusUnavailable (in status_view)  start the proxy, or name the address where one answers
SettingsInvalid (in settings, a ValueError)   mend the variable that it names
CommandRefused (in pgbouncer.admin, a psycopg.ProgrammingError)   PgBouncer would not; its reason is in the message
"""

from __future__ import annotations


def words_of(error: BaseException) -> str:
    """Return what an error says in one line; its type when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class ProxyError(Exception):
    """The proxy cannot go on; the message says what failed, what was seen and the next step."""


class PgbouncerUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """PgBouncer is missing, too old, does not start or keeps ending."""


class RunFolderUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The folder for rendered files cannot be written or given to PgBouncer's user."""


class PortTaken(ProxyError):  # noqa: N818 (named by what to do)
    """A port of ours cannot be listened on."""


class AgentUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The agent keeps crashing."""


class AgentRefused(ProxyError):  # noqa: N818 (named by what to do)
    """The agent ended before PgBouncer was started, with `exit_code`, and has logged why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the agent refused to start (exit code {exit_code})")
        self.exit_code = exit_code


class AwsCallFailed(ProxyError):  # noqa: N818 (named by what happened: AWS said no, or nothing)
    """A call to AWS was refused or not answered."""


class SecretUnreadable(AwsCallFailed):
    """A secret cannot be read or written, or has another shape; `arn` and AWS's `code` say which and why."""

    def __init__(self, message: str, arn: str, code: str) -> None:
        super().__init__(message)
        self.arn, self.code = arn, code


class SecretAlreadyWritten(AwsCallFailed):
    """Another task wrote this version of the secret first."""


class CertificateUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """A certificate, a key or a file of authorities cannot be used: expired, not matching or not what it should be."""


class DatabaseLoginUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The pool's login at the database is missing or is one that PgBouncer cannot send."""


class BudgetUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The tasks cannot share their budget of connections over this database, and only people can mend that."""


class ClientUsersClash(ProxyError):  # noqa: N818 (named by what was seen)
    """Two secrets name the same user, or one names a role of the database."""
