"""What the data endpoint, a process of its own, has written down for the agent: its counts as samples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from emberpool_proxy.metrics import BY_NAME, Labels

STALE_SECONDS = 20.0  # it writes every five: then it is gone, and its gauges with it


def read_counts(path: Path) -> Iterator[tuple[str, Labels, float]]:
    """Yield the samples in the file; none when it is missing, old or something else."""
    try:
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            return
        rows = [
            (str(name), tuple(map(str, labels)), float(value)) for name, labels, value in json.loads(path.read_bytes())
        ]
    except (OSError, ValueError, TypeError):
        return
    yield from (row for row in rows if row[0] in BY_NAME)
