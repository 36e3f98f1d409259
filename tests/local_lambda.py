"""A fleet of local execution environments for a handler that is written in the test, and what is asked of it."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emberpool_local.lambda_runtime import Fleet, Outcome

NewFleet = Callable[..., Fleet]


def fleet_of(folder: Path, source: str, *, module: str = "app", **settings: Any) -> Fleet:
    """Return a fleet of the handler in `source`, which is written to `folder`; forked, unless `settings` say other."""
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    settings.setdefault("handler", f"{module}:handler")
    settings.setdefault("start_method", "fork")
    return Fleet(code_folder=folder, **settings)


async def wait_until(failure: str, is_true: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    """Wait for a fact; `failure` is what it means when it does not come true."""
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline, failure
        await asyncio.sleep(0.01)


def answer(outcome: Outcome) -> Any:
    """Return what a handler that succeeded returned."""
    assert outcome.status == "succeeded", outcome
    return json.loads(outcome.payload)
