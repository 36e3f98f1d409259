"""Waiting for a fact with a deadline: the sentence given is the failure that a reader sees."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_SECONDS = 0.02


def wait_until(failure: str, fact: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    """Return as soon as `fact()` is true. Raises TimeoutError with the sentence `failure` after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{failure} (waited {timeout_seconds:g} s)")
        time.sleep(POLL_SECONDS)
