"""emberpool inside a Lambda function: one warm PostgreSQL connection per execution environment.

    from emberpool import warm_connection

    @warm_connection
    def handler(event, context, connection):
        return connection.execute("select count(*) from orders").fetchone()[0]

Everything is loaded on first use, so that `from emberpool import settings` needs no database driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberpool.data_endpoint import data_client
    from emberpool.errors import (
        CommitOutcomeUnknown,
        ConnectionInUse,
        ConnectionUnavailable,
        DeadlineTooClose,
        EmberpoolError,
        NoAnswer,
        NotCommitted,
        OutsideInvocation,
        PoolBusy,
        SecretUnavailable,
        TransactionAborted,
    )
    from emberpool.handler import warm_connection
    from emberpool.invocation import current_connection
    from emberpool.outside import connect
    from emberpool.settings import LayerSettings, SettingsInvalid

__all__ = [
    "CommitOutcomeUnknown",
    "ConnectionInUse",
    "ConnectionUnavailable",
    "DeadlineTooClose",
    "EmberpoolError",
    "LayerSettings",
    "NoAnswer",
    "NotCommitted",
    "OutsideInvocation",
    "PoolBusy",
    "SecretUnavailable",
    "SettingsInvalid",
    "TransactionAborted",
    "connect",
    "current_connection",
    "data_client",
    "warm_connection",
]

_HOMES = {
    "connect": "outside",
    "current_connection": "invocation",
    "data_client": "data_endpoint",
    "warm_connection": "handler",
    "LayerSettings": "settings",
    "SettingsInvalid": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
