"""Asks every task of a fleet for `/fleet`: first the one that is named, then all that it knows, at the same time.

Each has a bounded time; one that does not answer is an answer, too. Standard library only, for a shell in the
container.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from emberpool_proxy.telemetry.status_view import LONGEST_DOCUMENT_BYTES, StatusUnavailable

FLEET_PATH = "/fleet"
ANSWER_SECONDS = 2.0  # for each task, the connection included
ASKED_AT_ONCE = 100
ROUNDS = 3  # who has just joined may be known to some only: those are asked for whom they know, too
HTTP_PORTS = {"http": 80, "https": 443}
# What is shown; while versions change, tasks of two may be side by side.
BUDGET_PARTS = {
    "state",
    "budget",
    "floor",
    "limit",
    "slots",
    "slots_held",
    "slots_free",
    "slots_promised",
    "servers",
    "busy",
    "waiting",
    "missing",
    "tasks",
    "longest_wait_seconds",
    "is_connected",
    "short_by",
    "claim_conflict",
    "excess",
}


class _Silent(Exception):  # noqa: N818 (named by what happened; it never leaves this module)
    """A task did not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """What one task said, or (`document` is None) why it said nothing. `url` is where it was asked."""

    url: str
    document: dict[str, Any] | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """What tells it from the others: where the others reach it."""
        return (self.document and _own_url(self.document)) or self.url


@dataclass(frozen=True, slots=True)
class FleetLook:
    """All answers of one look, in the order of their names."""

    at: datetime
    answers: tuple[TaskAnswer, ...]

    @property
    def urls(self) -> tuple[str, ...]:
        """Where those that answered are asked next time."""
        return tuple(answer.url for answer in self.answers if answer.document)


def look(url: str, others: Iterable[str] = ()) -> FleetLook:
    """Ask the task at `url` (`http://host:port`) and all that it knows.

    When it does not answer, `others` are tried: those of an earlier look. Raises StatusUnavailable when nobody answers.
    """
    return asyncio.run(look_at_fleet(url, others))


async def look_at_fleet(url: str, others: Iterable[str] = ()) -> FleetLook:
    """Do what `look` does, within an event loop."""
    if not url.startswith(("http://", "https://")):
        raise StatusUnavailable(f"the proxy's address must begin with http:// or https://, got {url!r}")
    free = asyncio.Semaphore(ASKED_AT_ONCE)
    url = url.rstrip("/")
    first = await _ask(url, free)
    answers = {first.name: first} if first.document else {}
    asked, named = {url, *answers}, set() if answers else set(others)
    for _ in range(ROUNDS):
        named |= {name for answer in answers.values() if answer.document for name in _members(answer.document)}
        if not (new := named - asked):
            break
        asked |= new
        answers |= {answer.name: answer for answer in await asyncio.gather(*(_ask(name, free) for name in new))}
    if not any(answer.document for answer in answers.values()):
        raise StatusUnavailable(f"no proxy answers at {url}: {first.problem}; start it or name another with --url")
    if url in named:  # it did not answer, but others count on it
        answers.setdefault(first.name, first)
    return FleetLook(datetime.now(UTC), tuple(answers[name] for name in sorted(answers, key=_in_order)))


async def _ask(url: str, free: asyncio.Semaphore) -> TaskAnswer:
    async with free:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return TaskAnswer(url, _document(await _get(urlsplit(url))))
        except TimeoutError:
            return TaskAnswer(url, problem=f"no answer within {ANSWER_SECONDS:g} s")
        except OSError as error:
            return TaskAnswer(url, problem=_reason(error))
        except (_Silent, ValueError) as error:
            return TaskAnswer(url, problem=str(error))


async def _get(url: SplitResult) -> bytes:
    """Return the body of FLEET_PATH below `url`. HTTP/1.0: the server closes when it has said all."""
    host = url.hostname or ""
    port = url.port or HTTP_PORTS[url.scheme]
    context = ssl.create_default_context() if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(f"GET {url.path}{FLEET_PATH} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
        # Not read(): a program that sends without end must not fill our memory.
        answer = bytearray()
        while chunk := await reader.read(2**16):
            answer += chunk
            if len(answer) > LONGEST_DOCUMENT_BYTES:
                break
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not head.startswith(b"HTTP/") or not status:
        raise _Silent("what answers is no proxy of emberpool")
    if status[0] != b"200":
        raise _Silent(f"answers {status[0].decode(errors='replace')}: it is no proxy of emberpool, or an older one")
    return body


def _reason(error: OSError) -> str:
    # asyncio's own words for a refused connection are "Connect call failed"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__


def _document(body: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(body)
        known = document["budget"].keys() >= BUDGET_PARTS and {"clients", "draining"} <= document.keys()
        _members(document), _own_url(document)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Silent("what answers is no proxy of emberpool") from None
    if not known:
        raise _Silent("it runs another version, which tells other facts")
    return document


def _members(document: dict[str, Any]) -> list[str]:
    return [_url(member) for member in document.get("fleet", {}).get("members", ())]


def _own_url(document: dict[str, Any]) -> str | None:
    address = document.get("fleet", {}).get("address")
    return _url(address) if address else None


def _url(address: dict[str, Any]) -> str:
    host = address["host"]
    return f"http://{f'[{host}]' if ':' in host else host}:{address['health_port']}"


def _in_order(url: str) -> tuple[tuple[int, ...], str]:
    # 10.0.0.9 before 10.0.0.10
    parts = urlsplit(url).netloc.replace(":", ".").split(".")
    return tuple(int(part) for part in parts if part.isdigit()), url
