"""The warm connections of this process, one for each database that a handler declared."""

from __future__ import annotations

import functools
import os

from emberpool.connection import WarmConnection
from emberpool.invocation import HandlerOptions
from emberpool.settings import LayerSettings

RUNTIME_API = "AWS_LAMBDA_RUNTIME_API"


@functools.cache
def shared_connection(settings: LayerSettings) -> WarmConnection:
    """Return the one warm connection for these settings, however many handlers of a module declare it."""
    return WarmConnection(settings)


def declared_connection(options: HandlerOptions) -> WarmConnection:
    """Return the warm connection that a handler uses, already being opened when that helps.

    Raises SettingsInvalid.
    """
    warm = shared_connection(LayerSettings.from_environment(name=options.database))
    # Outside of Lambda (a test, a script) loading a module must not connect anywhere.
    if options.prewarm and not warm.is_open and RUNTIME_API in os.environ:
        warm.open_in_background()
    return warm
