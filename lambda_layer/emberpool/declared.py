"""The warm connections of this process, one for each database that a handler declared.

Owns what is done once when the first is declared: the hooks for SnapStart and the shutdown.
"""

from __future__ import annotations

import functools
import os

from emberpool import lifecycle, telemetry
from emberpool.connection import WarmConnection
from emberpool.invocation import HandlerOptions
from emberpool.settings import LayerSettings

RUNTIME_API = "AWS_LAMBDA_RUNTIME_API"

_declared: list[WarmConnection] = []
_registered: set[int] = set()


@functools.cache
def shared_connection(settings: LayerSettings) -> WarmConnection:
    """Return the one warm connection for these settings, however many handlers of a module declare it."""
    warm = WarmConnection(settings)
    _declared.append(warm)
    return warm


def declared_connection(options: HandlerOptions) -> WarmConnection:
    """Return the warm connection that a handler uses, already being opened when that helps.

    Raises SettingsInvalid.
    """
    settings = LayerSettings.from_environment(name=options.database)
    warm = shared_connection(settings)
    _register_once(settings)
    # Outside of Lambda (a test, a script) loading a module must not connect anywhere, and a snapshot must not hold
    # a connection.
    is_on_lambda = RUNTIME_API in os.environ and not lifecycle.is_before_snapshot()
    if options.prewarm and is_on_lambda and not warm.is_open:
        warm.open_in_background()
    return warm


def _register_once(settings: LayerSettings) -> None:
    # Once in each process: a forked worker registers for itself.
    if os.getpid() not in _registered:
        _registered.add(os.getpid())
        lifecycle.register(_discard_all, _open_all, settings)


def _discard_all() -> None:
    """Close everything; runs in a signal handler at the shutdown, so it takes no lock."""
    for warm in _declared:
        warm.discard()
    telemetry.flush()


def _open_all() -> None:
    for warm in _declared:
        warm.open_in_background()
