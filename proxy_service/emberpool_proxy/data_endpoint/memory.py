"""Bounds how fast the endpoint's process may grow: a huge row ends its own call, not the task.

libpq asks for the room of a whole row as soon as it has read the row's length, and reads for as long as bytes come, in
one call. So nothing that counts bytes can stop it; an allocation that is refused does: the connection is lost with an
error, and the memory of the task, which is PgBouncer's too, stays free. No other library may come to this bound: orjson
writes to where nothing is, and Rust gives up. So it is renewed as soon as libpq may have taken much of it, and lifted
while a large result is encoded, which was looked at before.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from psycopg import pq
from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.wire_bytes import wire_bytes

# What the process may grow by until the bound is renewed, answers aside: a request of 4 MiB can be 130 MiB of small
# objects. PostgreSQL's longest row is 1 GiB.
LEAST_GROWTH_BYTES = 256 * 1024 * 1024
COPIES_OF_AN_ANSWER = 4  # in libpq's buffer, its result, Python's and the JSON
LEAST_CHANGE_BYTES = 4 * 1024 * 1024  # less is not worth a system call
RENEW_SECONDS = 0.1
_STATM = "/proc/self/statm"
_STATM_BYTES, _DATA_FIELD = 128, 5  # pages of data and stack: proc(5)


class GrowthBound:
    """What the process may have: `growth_bytes` more than it has when the bound is renewed. None before start()."""

    def __init__(self) -> None:
        self._growth_bytes = 0
        self._soft_bytes = 0
        self._free = resource.getrlimit(resource.RLIMIT_DATA)

    def start(self, growth_bytes: int) -> None:
        """Bound the process from now on; not where there is no /proc."""
        if os.path.exists(_STATM):  # noqa: PTH110 (opened by its number below)
            self._growth_bytes = growth_bytes
            self.renew()

    def renew(self) -> None:
        """Let the process grow anew. Two microseconds."""
        if not self._growth_bytes:
            return
        soft_bytes = data_bytes() + self._growth_bytes
        if abs(soft_bytes - self._soft_bytes) < LEAST_CHANGE_BYTES:
            return
        self._soft_bytes = soft_bytes
        soft, hard = self._free
        soft = soft_bytes if soft == resource.RLIM_INFINITY else min(soft_bytes, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Have no bound for a moment."""
        resource.setrlimit(resource.RLIMIT_DATA, self._free)
        self._soft_bytes = 0
        try:
            yield
        finally:
            self.renew()


GROWTH = GrowthBound()  # as the limit, it is the process's


async def keep_growth_bounded(response_bytes: int) -> None:
    """Let the process grow by a few of the largest answers at a time, until cancelled."""
    GROWTH.start(LEAST_GROWTH_BYTES + COPIES_OF_AN_ANSWER * wire_bytes(response_bytes))
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        GROWTH.renew()


def data_bytes() -> int:
    """Return what counts against the process's RLIMIT_DATA."""
    return int(os.pread(_statm(), _STATM_BYTES, 0).split()[_DATA_FIELD]) * resource.getpagesize()


@cache
def _statm() -> int:
    return os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)


def result_bytes(result: PGresult) -> int:
    """Return the memory of a result. psycopg could only tell the length of each value."""
    return int(_result_memory_size(result.pgresult_ptr))  # type: ignore[attr-defined]  # (not in psycopg's protocol)


# From the very libpq that psycopg is linked with: another may lay a PGresult out otherwise. dlsym() looks in what the
# module depends on, too.
_result_memory_size = ctypes.PyDLL(sys.modules[pq.PGresult.__module__].__file__ or "").PQresultMemorySize
_result_memory_size.argtypes, _result_memory_size.restype = [ctypes.c_void_p], ctypes.c_size_t
