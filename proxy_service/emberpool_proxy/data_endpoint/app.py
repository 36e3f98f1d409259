"""The way of one request: its body, who signed it, limits, the task that has to answer, once, the database."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from emberpool_proxy.data_endpoint.bodies import Bodies, Incoming
from emberpool_proxy.data_endpoint.calls import (
    BeginTransaction,
    Call,
    Caller,
    CommitTransaction,
    ExecuteStatement,
    RollbackTransaction,
)
from emberpool_proxy.data_endpoint.counts import DataCounts
from emberpool_proxy.data_endpoint.deadlines import Deadlines
from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, NOT_FOUND, DataError
from emberpool_proxy.data_endpoint.forwarding import FORGOTTEN, LOOK, PASSED_ON, UNKNOWN, Answer, Others, Passed
from emberpool_proxy.data_endpoint.leases import Address, owner_of
from emberpool_proxy.data_endpoint.limits import Limits
from emberpool_proxy.data_endpoint.once import Answers, fingerprint
from emberpool_proxy.data_endpoint.openapi import document
from emberpool_proxy.data_endpoint.operations import Operations
from emberpool_proxy.data_endpoint.requests import parse
from emberpool_proxy.data_endpoint.signature import SignedRequest, Verifier
from emberpool_proxy.data_endpoint.sql_text import compile_sql
from emberpool_proxy.log import logger

WATCH_AFTER_SECONDS = 0.25  # a call that lasts longer is cancelled when its client goes away
CONTENT_TYPE = ("content-type", "application/json")
ATTEMPT = re.compile(r"\battempt=(\d{1,9})")
OPENAPI_PATH = "/openapi.json"
# What a SELECT changes would be refused in a transaction that is read-only: it can be run again in one without harm.
HARMLESS_WORDS = frozenset({"SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "WITH"})
RESEND_SECONDS = 3.0  # for a client to see that its connection has ended, and to connect again
OUTCOME_UNKNOWN = (
    "an earlier attempt of this call may have come to an endpoint that cannot be asked any more ({}): whether it has "
    "run is not known; look before you repeat it"
)


class RequestHeaders(Protocol):
    """granian's headers, by lower-case names."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the first value under a name."""
        ...

    def get_all(self, name: str, /) -> Sequence[str]:
        """Return all values under a name."""
        ...

    def keys(self) -> Iterable[str]:
        """Return the names."""
        ...

    def items(self) -> Iterable[tuple[str, str]]:
        """Return names and values as they came."""
        ...


class Scope(Protocol):
    """The part of granian's RSGI scope that is read."""

    method: str
    path: str
    query_string: str
    headers: RequestHeaders


class Exchange(Incoming, Protocol):
    """The part of granian's RSGI protocol that is used."""

    async def client_disconnect(self) -> None:
        """Return when the client has gone."""
        ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer: headers and body go out in one write."""
        ...


@dataclass(frozen=True)
class Parts:
    """What the app is made of. Without a `verifier` nobody signs and everybody is `anybody`: to measure on loopback."""

    bodies: Bodies
    verifier: Verifier | None
    limits: Limits
    answers: Answers
    operations: Operations
    others: Others
    own_address: Address | None  # None: this task is alone
    anybody: Caller | None = None
    restarted_at: float | None = None  # monotonic seconds, when an endpoint of this task ran before


class App:
    """The RSGI application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        boot = secrets.token_hex(8)
        self._request_ids = (f"{boot}-{number:x}" for number in itertools.count(1))
        self._running = 0
        self._watches: Deadlines[_Watch] = Deadlines()
        self.counts = DataCounts()
        self.is_draining = False

    @property
    def running(self) -> int:
        """How many requests are being worked on."""
        return self._running

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        """Answer one request."""
        request_id = next(self._request_ids)
        headers = [CONTENT_TYPE, ("x-amzn-requestid", request_id)]
        if self.is_draining:
            headers.append(("connection", "close"))  # the next request is another task's
        self._running += 1
        began, failure = time.perf_counter(), None
        try:
            answer = await self._answer(scope, exchange)
        except DataError as error:
            failure = error.kind
            headers.append(("x-amzn-errortype", error.kind))
            answer = Answer(error.status, {}, orjson.dumps({"message": error.message, **error.members}))
            # It may be kept for a resend: with its frames it would keep the request, and a whole result.
            error.__traceback__ = error.__context__ = error.__cause__ = None
        except Exception:  # noqa: BLE001 (a client that gets no answer sends its call again)
            # No 5xx, which the SDKs send again: a statement may have run.
            logger.exception("the data endpoint failed at request %s", request_id)
            failure = DATABASE_ERROR
            headers.append(("x-amzn-errortype", failure))
            message = f"the data endpoint failed: the outcome is unknown; its log has more under {request_id}"
            answer = Answer(400, {}, orjson.dumps({"message": message}))
        finally:
            self._running -= 1
            self.counts.add(time.perf_counter() - began, failure)
        if answer.headers:  # another task's, with a request id of its own
            theirs = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
            headers = [*(each for each in headers if each[0] not in theirs), *theirs.items()]
        exchange.response_bytes(answer.status, headers, answer.body)

    async def _answer(self, scope: Scope, exchange: Exchange) -> Answer:
        parts = self._parts
        if scope.method != "POST":
            return self._describe(scope)
        body = await parts.bodies.read(scope.headers, exchange)
        if parts.verifier:
            request = SignedRequest(scope.method, scope.path, scope.query_string, scope.headers, body)
            caller = parts.verifier.caller(request, time.time())
        else:
            assert parts.anybody is not None  # noqa: S101 (Parts says so)
            caller = parts.anybody
        call = parse(scope.path, body)
        parts.limits.enter(caller.name, time.monotonic())
        watch = _Watch(exchange, self._watches)
        try:
            return await self._routed(scope, caller, call, body)
        except asyncio.CancelledError:
            if not watch.has_cancelled:
                raise
            raise DataError(DATABASE_ERROR, "the client has gone, and its call was cancelled") from None
        finally:
            watch.end()
            parts.limits.leave(caller.name)

    async def _routed(self, scope: Scope, caller: Caller, call: Call, body: bytes) -> Answer:
        """Answer here, or have the task do it that holds the transaction or has answered before."""
        parts, headers = self._parts, scope.headers
        invocation, passed_on = headers.get("amz-sdk-invocation-id"), headers.get(PASSED_ON)
        key = fingerprint(caller.name, invocation, scope.path, body) if invocation else None
        is_known = key is not None and parts.answers.knows(key)
        if passed_on == LOOK and not is_known:
            return Answer(404, {FORGOTTEN if self._may_have_forgotten(_attempt(headers)) else UNKNOWN: "1"}, b"{}")
        if passed_on is None:
            owner = owner_of(transaction) if (transaction := _transaction_of(call)) else None
            if owner and parts.own_address and owner != parts.own_address:
                return await parts.others.pass_on(owner, _passed(scope, body))
            if key and not owner and not is_known and (attempt := _attempt(headers)) > 1:
                try:
                    if found := await self._answered_before(scope, body, attempt):
                        return found
                except LookupError as error:
                    caller = _harmless(caller, call, str(error))
        if key is None:
            return Answer(200, {}, await parts.operations.run(caller, call))
        return Answer(200, {}, await parts.answers.once(key, lambda: parts.operations.run(caller, call)))

    async def _answered_before(self, scope: Scope, body: bytes, attempt: int) -> Answer | None:
        """Return another task's answer to this call, None when no task can have seen it. Raises LookupError."""
        if self._may_have_forgotten(attempt):
            raise LookupError("the data endpoint has started again since")
        return await self._parts.others.find_answer(_passed(scope, body)) if self._parts.own_address else None

    def _may_have_forgotten(self, attempt: int) -> bool:
        """Say whether an earlier attempt may have come to the process before this one, which crashed.

        Its client saw the connection end then, and has sent this attempt after pauses of 1, 2, 4... seconds at most.
        """
        restarted_at = self._parts.restarted_at
        return restarted_at is not None and time.monotonic() - restarted_at < 2 ** min(attempt, 8) + RESEND_SECONDS

    def _describe(self, scope: Scope) -> Answer:
        if scope.path != OPENAPI_PATH or scope.method not in ("GET", "HEAD"):
            raise DataError(NOT_FOUND, f"there is no {scope.method} {scope.path}: see {OPENAPI_PATH}")
        return Answer(200, {}, document())


class _Watch:
    """Cancels the task that made it when the client has gone; it costs nothing while the call is short."""

    def __init__(self, exchange: Exchange, watches: Deadlines[_Watch]) -> None:
        self._exchange = exchange
        self._watches = watches
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self.has_cancelled = False
        watches.set(self, asyncio.get_running_loop().time() + WATCH_AFTER_SECONDS, _Watch._begin)

    def end(self) -> None:
        """Watch no more: the call has its answer."""
        self._watches.clear(self)
        if self._watching:
            self._watching.cancel()

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        await self._exchange.client_disconnect()
        self.has_cancelled = True
        if self._task:
            self._task.cancel()


def _transaction_of(call: Call) -> str:
    if isinstance(call, BeginTransaction):
        return ""
    if isinstance(call, CommitTransaction | RollbackTransaction):
        return call.transaction_id
    return call.place.transaction_id


def _attempt(headers: RequestHeaders) -> int:
    """Return which attempt of its call this is: 2 of `ttl=20261122T230000Z; attempt=2; max=3`."""
    found = ATTEMPT.search(headers.get("amz-sdk-request", ""))
    return int(found[1]) if found else 1


def _harmless(caller: Caller, call: Call, why: str) -> Caller:
    """Return the caller as whom a call may run again though it may have run. Raises DataError when nobody may."""
    if caller.is_read_only or isinstance(call, BeginTransaction):
        return caller
    if isinstance(call, ExecuteStatement):
        words = compile_sql(call.sql, frozenset()).words
        if words and words[0] in HARMLESS_WORDS:
            return replace(caller, is_read_only=True)
    raise DataError(DATABASE_ERROR, OUTCOME_UNKNOWN.format(why))


def _passed(scope: Scope, body: bytes) -> Passed:
    path = f"{scope.path}?{scope.query_string}" if scope.query_string else scope.path
    return Passed(path, tuple(scope.headers.items()), body)
