"""Answers that were given: an attempt of the same call that comes again gets the first one's, and nothing runs twice.

The SDKs send a call again, with the same amz-sdk-invocation-id, when they have seen no answer to it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, THROTTLED, DataError

KEPT_SECONDS = 120.0  # an SDK has given up, or come again, within its read timeout of a minute and its pauses
MOST_ANSWERS = 100_000  # each about 300 bytes with a row in it
MOST_BYTES = 32 * 1024 * 1024
_DIGEST_BYTES = 16
_FIRST_SERVER_ERROR = 500

Given = bytes | DataError
Running = asyncio.Future[None]  # done when the attempt is over, however
DROPPED = DataError(
    DATABASE_ERROR,
    "an earlier attempt of this call has run, and its answer is not kept any more: look before you repeat it",
)


def fingerprint(caller_name: str, invocation_id: str, path: str, body: bytes) -> bytes:
    """Return what an attempt is known by: who sent what, under which id."""
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES)
    digest.update(f"\0{path}\0{caller_name}\0{invocation_id}".encode())
    return digest.digest()


class Answers:
    """The answers of the last minutes: at most so many, and so many bytes of them.

    They are kept in two halves, and every `seconds` the older half is forgotten: each is known for one to two times as
    long. Above the number the older half goes early. Above the bytes only the bodies go: the call is still known to
    have run.
    """

    def __init__(self, most: int = MOST_ANSWERS, most_bytes: int = MOST_BYTES, seconds: float = KEPT_SECONDS) -> None:
        self._most_in_half = max(1, most // 2)
        self._most_bytes_in_half = most_bytes // 2
        self._seconds = seconds
        self._running: dict[bytes, list[Running]] = {}
        self._newer: dict[bytes, Given] = {}
        self._older: dict[bytes, Given] = {}
        self._bytes = 0
        self._turned_at = 0.0

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def knows(self, key: bytes) -> bool:
        """Whether this call was answered, or runs."""
        return key in self._running or self._given(key) is not None

    async def once(self, key: bytes, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return what `work` returns, or raise its DataError; of calls with the same key only one does the work.

        An attempt that came to nothing (it was cancelled, or refused before anything could run) is not remembered.
        """
        while (waiting := self._running.get(key)) is not None:
            over: Running = asyncio.get_running_loop().create_future()
            waiting.append(over)
            await over
        if (given := self._given(key)) is not None:
            return _given_again(given)
        self._running[key] = []
        try:
            body = await work()
        except DataError as error:
            if error.kind != THROTTLED and error.status < _FIRST_SERVER_ERROR:
                self._keep(key, error, len(error.message))
            raise
        else:
            self._keep(key, body, len(body))
            return body
        finally:
            for over in self._running.pop(key):
                if not over.done():
                    over.set_result(None)

    def _given(self, key: bytes) -> Given | None:
        if self._newer or self._older:
            self._turn(asyncio.get_running_loop().time())
        given = self._newer.get(key)
        return self._older.get(key) if given is None else given

    def _keep(self, key: bytes, given: Given, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._turn(now)
        if len(self._newer) >= self._most_in_half:
            self._forget_older(now)
        self._bytes += size
        if self._bytes > self._most_bytes_in_half:
            self._bytes -= size
            given = DROPPED
        self._newer[key] = given

    def _turn(self, now: float) -> None:
        if now - self._turned_at >= self._seconds:
            is_all_old = now - self._turned_at >= 2 * self._seconds
            self._forget_older(now)
            if is_all_old:
                self._older = {}

    def _forget_older(self, now: float) -> None:
        self._older, self._newer = self._newer, {}
        self._bytes = 0
        self._turned_at = now


def _given_again(given: Given) -> bytes:
    if isinstance(given, DataError):
        raise DataError(given.kind, given.message, **given.members)
    return given
