"""Reads a request's body within its limits: who calls is known only after it was read whole.

Large bodies of all requests together have one bound, so that nobody can fill the task's memory before a signature was
checked; who finds it full is told to come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from granian._granian import RSGIProtocolClosed

from emberpool_proxy.data_endpoint.deadlines import Deadlines
from emberpool_proxy.data_endpoint.errors import SERVICE_UNAVAILABLE, DataError, bad_request

BODY_SECONDS = 10.0  # for all of it: a client that drips its request holds no memory for longer
SMALL_BYTES = 16 * 1024  # counted as nothing: the server's bound of connections is theirs, too
ALL_BYTES = 64 * 1024 * 1024


class Incoming(Protocol):
    """The part of granian's RSGI protocol that has the body."""

    async def __call__(self) -> bytes:
        """Return the whole body."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the body chunk by chunk."""
        ...


class Lengths(Protocol):
    """Headers that may say how long the body is."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the first value under a lower-case name."""
        ...


class Bodies:
    """Reads bodies of at most `most_bytes` each."""

    def __init__(self, most_bytes: int, all_bytes: int = ALL_BYTES, body_seconds: float = BODY_SECONDS) -> None:
        self._most_bytes = most_bytes
        self._all_bytes = max(all_bytes, most_bytes)
        self._body_seconds = body_seconds
        self._taken = 0
        self._deadlines: Deadlines[asyncio.Task[Any]] = Deadlines()
        self._late: set[asyncio.Task[Any]] = set()

    async def read(self, headers: Lengths, incoming: Incoming) -> bytes:
        """Return the body. Raises DataError when it is too large, too slow, or has no room now."""
        length = self._length(headers)
        size = self._taken_up(self._most_bytes if length is None else length)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (this is a coroutine)
        self._deadlines.set(task, asyncio.get_running_loop().time() + self._body_seconds, self._end)
        try:
            return await (self._collect(incoming) if length is None else incoming())
        except RSGIProtocolClosed:
            raise bad_request("the request's body did not arrive whole") from None  # nobody hears it
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise bad_request(f"the request's body did not arrive within {self._body_seconds:g} s") from None
        finally:
            self._deadlines.clear(task)
            self._late.discard(task)
            self._taken -= size

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.cancel()

    def _length(self, headers: Lengths) -> int | None:
        text = headers.get("content-length")
        if text is None:
            return None
        length = int(text)  # the server has refused what is no number
        if length > self._most_bytes:
            raise self._too_large()
        return length

    async def _collect(self, incoming: Incoming) -> bytes:
        """Read a body whose length nobody has said."""
        chunks, size = [], 0
        async for chunk in incoming:
            size += len(chunk)
            if size > self._most_bytes:
                raise self._too_large()
            chunks.append(bytes(chunk))
        return b"".join(chunks)

    def _taken_up(self, size: int) -> int:
        """Take the room that a body needs, and return how much that is."""
        size = 0 if size <= SMALL_BYTES else size
        if self._taken + size > self._all_bytes:
            raise DataError(SERVICE_UNAVAILABLE, "too many large requests arrive at once; try again")
        self._taken += size
        return size

    def _too_large(self) -> DataError:
        return bad_request(f"the request is larger than {self._most_bytes} bytes")
