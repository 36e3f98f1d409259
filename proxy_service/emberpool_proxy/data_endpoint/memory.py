"""Bounds how fast the endpoint's process may grow: a huge row ends its own call, not the task.

libpq asks for the room of a whole row as soon as it has read the row's length, and reads for as long as bytes come, in
one call. So nothing that counts bytes can stop it; an allocation that is refused does: the connection is lost with an
error, and the memory of the task, which is PgBouncer's too, stays free.
"""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import suppress
from pathlib import Path

from emberpool_proxy.data_endpoint.wire_bytes import wire_bytes

# What the process may grow by within RENEW_SECONDS, answers aside: a request of 4 MiB can be 130 MiB of small objects.
# PostgreSQL's longest row is 1 GiB.
LEAST_GROWTH_BYTES = 256 * 1024 * 1024
COPIES_OF_AN_ANSWER = 4  # in libpq's buffer, its result, Python's and the JSON
RENEW_SECONDS = 0.1
_STATM = Path("/proc/self/statm")
_DATA_FIELD = 5  # pages of data and stack: proc(5)


async def keep_growth_bounded(response_bytes: int) -> None:
    """Let the process grow by a few of the largest answers at a time, until cancelled; not where there is no /proc."""
    growth_bytes = LEAST_GROWTH_BYTES + COPIES_OF_AN_ANSWER * wire_bytes(response_bytes)
    while True:
        with suppress(FileNotFoundError):
            bound_growth(growth_bytes)
        await asyncio.sleep(RENEW_SECONDS)


def bound_growth(growth_bytes: int) -> None:
    """Let the process have so many bytes more than it has now. Raises FileNotFoundError where there is no /proc."""
    data_bytes = int(_STATM.read_text().split()[_DATA_FIELD]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = data_bytes + growth_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
