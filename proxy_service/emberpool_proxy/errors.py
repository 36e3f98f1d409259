"""The errors of the proxy, each named by what to do.

ProxyError
    PgbouncerUnusable    install PgBouncer 1.24 or newer, or mend what its last log lines say
    RunFolderUnusable    give the proxy a folder that it can write
    PortTaken            free the port that it names or choose another
SettingsInvalid (in settings, a ValueError)   mend the variable that it names
"""

from __future__ import annotations


class ProxyError(Exception):
    """The proxy cannot go on; the message says what failed, what was seen and the next step."""


class PgbouncerUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """PgBouncer is missing, too old, does not start or keeps ending."""


class RunFolderUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The folder for rendered files cannot be written or given to PgBouncer's user."""


class PortTaken(ProxyError):  # noqa: N818 (named by what to do)
    """A port of ours cannot be listened on."""
