"""A function with emberpool's layer, its decorator above the function's own imports, which overlap the connecting."""

# ruff: noqa: E402 (the clock first)
import time

began = time.monotonic()

from typing import Any

from emberpool import warm_connection


@warm_connection
def handler(_event: Any, _context: Any, connection: Any) -> dict[str, float]:
    connection.execute("select 1").fetchone()
    return {"began": began, "row": time.monotonic()}


from benchmarks.layer.functions import own_imports  # noqa: F401
