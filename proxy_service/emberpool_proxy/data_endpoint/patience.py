"""Statements that go on after their time (continueAfterTimeout): their caller has an answer, they end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

from emberpool_proxy.data_endpoint.errors import STATEMENT_TIMEOUT, THROTTLED, DataError
from emberpool_proxy.data_endpoint.session import SessionLost

MOST_CONTINUED = 20  # each holds a server connection for as long as it likes


class Patience:
    """Waits `seconds` for work, and lets it go on then. Nothing of it ends with its client."""

    def __init__(self, seconds: float, most: int = MOST_CONTINUED) -> None:
        self._seconds = seconds
        self._most = most
        self._going_on: set[asyncio.Task[bytes]] = set()

    async def wait(self, work: Coroutine[None, None, bytes], process: Callable[[], Awaitable[int]]) -> bytes:
        """Return what the work does in time. Raises DataError, after it with the process id that `process` finds."""
        if len(self._going_on) >= self._most:
            work.close()
            raise DataError(
                THROTTLED, f"{self._most} statements with continueAfterTimeout run in this task, the most that may"
            )
        task = asyncio.get_running_loop().create_task(work)
        self._going_on.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._seconds)
        if done:
            return task.result()
        pid = 0
        with suppress(DataError, SessionLost):
            pid = await process()
        raise DataError(
            STATEMENT_TIMEOUT,
            f"the statement has not ended within {self._seconds:g} s, and goes on",
            **({"dbConnectionId": pid} if pid else {}),
        )

    async def close(self) -> None:
        """Stop all that goes on."""
        for task in self._going_on:
            task.cancel()
        if self._going_on:
            await asyncio.wait(set(self._going_on))

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._going_on.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever still waited; the server's log has it, too
