"""Calls that another task of the fleet has to answer: its transactions, and the answers that it has given already.

A call is passed on as it came, with the caller's signature: the other task checks it by itself, so that tasks need not
trust one another. Whom to ask the agent of this task knows; only those are asked, whatever a transaction's id says.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, TRANSACTION_NOT_FOUND, DataError
from emberpool_proxy.data_endpoint.leases import Address
from emberpool_proxy.errors import words_of

PASSED_ON = "x-emberpool-passed-on"  # "call": answer it; "look": only if it was answered before
UNKNOWN = "x-emberpool-unknown"  # of an answer: this task has not seen the call
FORGOTTEN = "x-emberpool-forgotten"  # of an answer: it may have been seen by the endpoint of that task before this one
CALL, LOOK = "call", "look"
CONNECT_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 1.0  # at whom the agent knows
# Of its hop only; the signature covers none of them, and the host is passed on as it is.
OWN_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "te", "upgrade"})


@dataclass(frozen=True, slots=True)
class Passed:
    """A request as it came, to be sent again byte for byte."""

    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Another task's answer, to be given as it is."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Others:
    """The other tasks. `look` returns their addresses; `tls` is None for a fleet without TLS."""

    def __init__(
        self,
        look: Callable[[], Awaitable[frozenset[Address]]],
        tls: Callable[[], ssl.SSLContext | None],
        answer_seconds: float,
    ) -> None:
        self._look = look
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=answer_seconds, sock_connect=CONNECT_SECONDS)
        self._session: aiohttp.ClientSession | None = None
        self._known: frozenset[Address] = frozenset()
        self._known_at = -LOOK_AGAIN_SECONDS

    async def pass_on(self, address: Address, passed: Passed) -> Answer:
        """Have the task at `address` answer. Raises DataError when it is none of ours, or is gone."""
        if address not in await self.addresses():
            raise gone()
        try:
            return await self._send(address, passed, CALL)
        except aiohttp.ClientConnectorError:
            raise gone() from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DataError(
                DATABASE_ERROR,
                f"the task that holds the transaction did not answer ({words_of(error)}): the outcome is unknown",
            ) from None

    async def find_answer(self, passed: Passed) -> Answer | None:
        """Return what a task has answered to this call before, None when none has seen it.

        Raises LookupError when a task cannot be asked: it may have run the call.
        """
        others = sorted(await self.addresses())
        found = await asyncio.gather(*(self._send(address, passed, LOOK) for address in others), return_exceptions=True)
        failures = []
        for answer in found:
            if isinstance(answer, Answer) and answer.headers.keys().isdisjoint((UNKNOWN, FORGOTTEN)):
                return answer
            if isinstance(answer, BaseException):
                failures.append(words_of(answer))
            elif FORGOTTEN in answer.headers:
                failures.append("the data endpoint of its task has started again since")
        if failures:
            raise LookupError(failures[0])
        return None

    async def addresses(self) -> frozenset[Address]:
        """Return where the others answer, not older than a second unless the agent is away."""
        now = time.monotonic()
        if now - self._known_at >= LOOK_AGAIN_SECONDS:
            # While the agent starts again, whom it knew is still right.
            with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                self._known = await self._look()
            self._known_at = now
        return self._known

    async def close(self) -> None:
        """Close all connections to the others."""
        if self._session:
            await self._session.close()

    async def _send(self, address: Address, passed: Passed, kind: str) -> Answer:
        if self._session is None:
            # The tasks' names are in no certificate that we could compare: who has one of our authority is one of us.
            self._session = aiohttp.ClientSession(timeout=self._timeout, auto_decompress=False)
        tls = self._tls()
        scheme = "https" if tls else "http"
        headers = [(name, value) for name, value in passed.headers if name.lower() not in OWN_HEADERS]
        async with self._session.post(
            f"{scheme}://{_place(address)}{passed.path}",
            data=passed.body,
            headers=[*headers, (PASSED_ON, kind)],
            ssl=tls or False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ) as answer:
            return Answer(
                answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()
            )


def _place(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def gone() -> DataError:
    """Return the error for a transaction whose task has gone, or that never was."""
    return DataError(TRANSACTION_NOT_FOUND, "Transaction is not found: it has ended, or the task that held it is gone")
