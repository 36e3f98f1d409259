"""The errors of the local stack: a problem and the next step, shown by the command line without a stack trace.

LocalStackError
    SystemPackagesMissing   install the packages that it names
    PgbouncerUnavailable    PgBouncer is missing, too old, or could not be built
    PostgresUnavailable     no PostgreSQL 15 or newer, or it did not start
    ProxyUnavailable        the proxy did not start
    PortTaken               another program listens on the port
    CacheNotWritable        the cache folder cannot be written
    HandlerInvalid          MODULE:HANDLER names nothing that can be called, or it failed while it was loaded
    EventInvalid            the event is not JSON
    InvocationFailed        the handler raised, timed out or its process ended
    DeployUnavailable       node, npm or cdk is missing or failed
    FaultUnknown            the failure lab has no fault of this name
    NetworkUnavailable      the machine does not give the failure lab the network that was asked for
    PromiseBroken           the demo did not show what it promises, or the failure lab found a violation
"""

from __future__ import annotations


class LocalStackError(Exception):
    """Something that the user can mend: `problem` says what failed, `next_step` what to do about it."""

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.next_step = next_step


class SystemPackagesMissing(LocalStackError):  # noqa: N818
    """System packages are missing and cannot be installed without the user's help."""


class PgbouncerUnavailable(LocalStackError):  # noqa: N818
    """There is no PgBouncer that is new enough, and none could be built."""


class PostgresUnavailable(LocalStackError):  # noqa: N818
    """There is no PostgreSQL that is new enough, or it did not start."""


class ProxyUnavailable(LocalStackError):  # noqa: N818
    """The proxy did not start or did not become ready."""


class PortTaken(LocalStackError):  # noqa: N818
    """Another program listens on the port that was asked for."""


class CacheNotWritable(LocalStackError):  # noqa: N818
    """The cache folder cannot be written."""


class HandlerInvalid(LocalStackError):  # noqa: N818
    """MODULE:HANDLER does not name something that can be called, or it failed while it was loaded."""


class EventInvalid(LocalStackError):  # noqa: N818
    """The event is not JSON."""


class InvocationFailed(LocalStackError):  # noqa: N818
    """The handler raised, ran out of time, or its process ended."""


class DeployUnavailable(LocalStackError):  # noqa: N818
    """Node.js, npm or the cdk command is missing or failed."""


class FaultUnknown(LocalStackError):  # noqa: N818
    """The failure lab has no fault of this name."""


class NetworkUnavailable(LocalStackError):  # noqa: N818
    """The machine does not give the failure lab the network that was asked for."""


class PromiseBroken(LocalStackError):  # noqa: N818
    """The demo did not show what it promises, or the failure lab found a violation."""
