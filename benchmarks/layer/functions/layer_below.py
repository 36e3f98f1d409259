"""The same with every import at the top, as most write it: the decorator comes after them."""

# ruff: noqa: E402 (the clock first)
import time

began = time.monotonic()

from typing import Any

from benchmarks.layer.functions import own_imports  # noqa: F401

from emberpool import warm_connection


@warm_connection
def handler(_event: Any, _context: Any, connection: Any) -> dict[str, float]:
    connection.execute("select 1").fetchone()
    return {"began": began, "row": time.monotonic()}
