"""What happens to an environment beside its invocations: SnapStart's snapshot and restore, and the shutdown.

Owns the hooks and the signal. What is closed and opened then is the caller's business. Nothing in here may break an
initialisation: what does not work is a log line, and the environment is as good as without it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from emberpool.settings import LayerSettings

if TYPE_CHECKING:
    import http.client

SNAP_START = "snap-start"
EXTENSIONS_API = "/2020-01-01/extension"
EXTENSION_NAME = "emberpool"  # Lambda shows it in the function's log
REGISTRATION_SECONDS = 2.0  # about a millisecond is usual; who gives up is not told of the shutdown
ASKS_AGAIN_SECONDS = (
    0.05,
    0.2,
    1.0,
)  # an extension that never asks for its next event keeps the function from starting

_log = logging.getLogger(__name__)
_restored = threading.Event()


def register(discard: Callable[[], None], open_again: Callable[[], None], settings: LayerSettings) -> None:
    """Close by `discard` before a snapshot and at the shutdown, and call `open_again` after a restore.

    Call it once per process and while the function initialises: Lambda takes neither hooks nor extensions later.
    Outside Lambda it does nothing. Never raises.
    """
    runtime_api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if not runtime_api:
        return
    if is_before_snapshot():
        _register_hooks(discard, open_again)
    if settings.close_on_shutdown == "on":
        _close_at_sigterm(discard)
        _ask_for_sigterm(runtime_api)


def is_before_snapshot() -> bool:
    """Whether a snapshot is still to be taken of this process: a connection opened now is dead when it is restored.

    Ask it before opening ahead of the first invocation, not in an invocation.
    """
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == SNAP_START and not _restored.is_set()


def _register_hooks(discard: Callable[[], None], open_again: Callable[[], None]) -> None:
    try:
        # Part of Lambda's own runtime, without types.
        from snapshot_restore_py import (  # type: ignore[import-untyped]  # noqa: PLC0415 (only for SnapStart)
            register_after_restore,
            register_before_snapshot,
        )
    except ImportError:
        _log.debug("no SnapStart hooks: the module snapshot_restore_py is missing")
        return

    def before_snapshot() -> None:
        _attempt("closing the connection before the snapshot", discard)

    def after_restore() -> None:
        _restored.set()
        _attempt("opening the connection after the restore", open_again)

    register_before_snapshot(before_snapshot)
    register_after_restore(after_restore)


def _attempt(what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (Lambda takes an error in a hook for a broken function)
        _log.warning("%s failed; the next invocation opens it: %s: %s", what, type(error).__name__, error)


def _close_at_sigterm(discard: Callable[[], None]) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    if previous != signal.SIG_DFL and not callable(previous):
        _log.debug("SIGTERM is ignored or handled outside Python: the connection is not closed at the shutdown")
        return
    pid = os.getpid()

    def close_and_end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:
            _end_as_before(previous, number, frame)
            return
        # First: the function's own handler may take all of the half second, or end the process itself.
        _attempt("closing the connection at the shutdown", discard)
        try:
            if callable(previous):
                previous(number, frame)
        finally:
            # Not sys.exit: from Python 3.13 on it waits for the runtime client's thread until the kill.
            os._exit(0)

    try:
        signal.signal(signal.SIGTERM, close_and_end)
    except ValueError:
        _log.debug("not in the main thread: the connection is not closed at the shutdown")


def _end_as_before(
    previous: Callable[[int, FrameType | None], object] | int | None, number: int, frame: FrameType | None
) -> None:
    """Handle SIGTERM in a process that the function forked, which is none of our business."""
    if callable(previous):
        previous(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _ask_for_sigterm(runtime_api: str) -> None:
    """Register an internal extension: Lambda sends SIGTERM, 500 ms before the kill, only where one is registered."""
    registered = threading.Event()
    thread = threading.Thread(
        target=_run_extension, args=(runtime_api, registered), name="emberpool-shutdown", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        _log.debug("no thread for the shutdown's extension")
        return
    # Waited for: Lambda takes no extension any more once the runtime has asked for its first event.
    registered.wait(REGISTRATION_SECONDS)


def _run_extension(runtime_api: str, registered: threading.Event) -> None:
    import http.client  # noqa: PLC0415 (only on Lambda)

    try:
        # No timeout: a registration whose answer comes late is one. Lambda waits with the first invocation until every
        # registered extension has asked for its next event, and ends the initialisation after 10 s.
        identifier = _registered_identifier(http.client.HTTPConnection(runtime_api))
    except (OSError, ValueError, http.client.HTTPException) as error:
        _log.debug("no SIGTERM at the shutdown: %s: %s", type(error).__name__, error)
        return
    finally:
        registered.set()
    for pause_seconds in ASKS_AGAIN_SECONDS:
        try:
            # There is none for an extension without events; the environment may be frozen for hours meanwhile.
            connection = http.client.HTTPConnection(runtime_api)
            connection.request(
                "GET", f"{EXTENSIONS_API}/event/next", headers={"Lambda-Extension-Identifier": identifier}
            )
            connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            _log.debug("asking for the extension's next event failed: %s: %s", type(error).__name__, error)
            time.sleep(pause_seconds)
        else:
            return


def _registered_identifier(connection: http.client.HTTPConnection) -> str:
    """Return what the extension is known by from now on. Raises ValueError when Lambda refuses it."""
    headers = {"Lambda-Extension-Name": EXTENSION_NAME, "Content-Type": "application/json"}
    connection.request("POST", f"{EXTENSIONS_API}/register", body=b'{"events": []}', headers=headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    identifier = response.getheader("Lambda-Extension-Identifier")
    if response.status != 200 or not identifier:  # noqa: PLR2004 (OK)
        raise ValueError(f"Lambda answered {response.status} to the registration: {answer[:200]!r}")
    return identifier
