"""The Lambda Runtime API for one execution environment, on a loopback port of its own.

Owns the HTTP that the real runtime client speaks: which paths exist, the headers of `next`, the size limit of
responses. What an answer means for the environment is the listener's business.
"""

from __future__ import annotations

import asyncio
import collections
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from emberpool_local.lambda_runtime.extensions_api import ExtensionsApi
from emberpool_local.lambda_runtime.outcome import (
    LARGEST_RESPONSE_BYTES,
    Answer,
    ErrorReport,
    failed,
    response_too_large,
    succeeded,
)

BASE = "/2018-06-01/runtime"
READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Event:
    """An event as the runtime client gets it; `deadline_ms` is milliseconds since 1970."""

    payload: bytes
    request_id: str
    deadline_ms: int
    trace_id: str
    function_arn: str

    def headers(self) -> dict[str, str]:
        """Return the headers of `next`.

        The client dies without Content-Type and the request id, and aborts on a deadline that is no number.
        """
        return {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": self.request_id,
            "Lambda-Runtime-Deadline-Ms": str(self.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": self.function_arn,
            "Lambda-Runtime-Trace-Id": self.trace_id,
        }


class Listener(Protocol):
    """Who is told what the runtime client says."""

    def on_next(self) -> None:
        """Learn that the client waits for an event."""

    def on_snapshot(self) -> None:
        """Learn that the client is initialised and waits to be restored."""

    def on_answer(self, request_id: str, answer: Answer) -> bool:
        """Learn how an invocation ended; false when the request id is not the current one."""

    def on_init_error(self, report: ErrorReport) -> None:
        """Learn that the handler could not be loaded."""


class RuntimeApi:
    """An HTTP server on 127.0.0.1 that one runtime client talks to: one process, or all the workers that it forked."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._asking: collections.deque[asyncio.Future[Event]] = collections.deque()
        self._events: collections.deque[Event] = collections.deque()  # that nobody has asked for yet
        self._has_init_error = False
        self._extensions = ExtensionsApi()
        self._restored = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def has_extension(self) -> bool:
        """Whether an extension registered, so that the client's process gets SIGTERM before its end."""
        return self._extensions.is_registered

    async def open(self) -> int:
        """Listen on a free port and return it."""
        app = web.Application()
        app.router.add_get(BASE + "/invocation/next", self._next)
        app.router.add_post(BASE + "/invocation/{request_id}/response", self._response)
        app.router.add_post(BASE + "/invocation/{request_id}/error", self._error)
        app.router.add_post(BASE + "/init/error", self._init_error)
        app.router.add_get(BASE + "/restore/next", self._restore_next)
        app.router.add_post(BASE + "/restore/error", self._restore_error)
        self._extensions.add_routes(app.router)
        # Cancellation: a client that was killed while it waited for `next` leaves no handler behind.
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.5
        )
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening and drop the client's connection."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def hand_over(self, event: Event) -> None:
        """Answer a pending `next`, or the one that comes next: a worker may still be at its initialisation."""
        while self._asking:
            asking = self._asking.popleft()
            if not asking.done():  # whoever asked has not died meanwhile
                asking.set_result(event)
                return
        self._events.append(event)

    def withdraw(self, event: Event) -> None:
        """Forget an event that nobody waits for any more, if it was not handed over yet."""
        if event in self._events:
            self._events.remove(event)

    def restore(self) -> None:
        """Let the client go on that waits to be restored."""
        self._restored.set()

    async def _next(self, _request: web.Request) -> web.Response:
        await self._extensions.close_registration()
        asking: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        if self._events:
            asking.set_result(self._events.popleft())
        else:
            self._asking.append(asking)
        self._listener.on_next()
        event = await asking
        return web.Response(body=event.payload, headers=event.headers())

    async def _response(self, request: web.Request) -> web.Response:
        body, size_bytes = await _read_at_most(request, LARGEST_RESPONSE_BYTES)
        if size_bytes <= LARGEST_RESPONSE_BYTES:
            return self._answered(request, succeeded(body))
        self._answered(request, response_too_large(size_bytes))
        # As on Lambda, the client takes this as fatal: its process ends and the next invocation is cold.
        return web.json_response({"errorType": "RequestEntityTooLarge"}, status=413)

    async def _error(self, request: web.Request) -> web.Response:
        return self._answered(request, failed(await _report(request)))

    def _answered(self, request: web.Request, answer: Answer) -> web.Response:
        if not self._listener.on_answer(request.match_info["request_id"], answer):
            return web.json_response({"errorType": "InvalidRequestID"}, status=400)
        return _accepted()

    async def _init_error(self, request: web.Request) -> web.Response:
        if self._has_init_error:
            # As on Lambda: another worker of this client was the first to say it.
            return web.json_response({"errorType": "InvalidStateTransition"}, status=403)
        self._has_init_error = True
        self._listener.on_init_error(await _report(request))
        return _accepted()

    async def _restore_next(self, _request: web.Request) -> web.Response:
        await self._extensions.close_registration()
        self._listener.on_snapshot()
        await self._restored.wait()
        return web.json_response({})

    async def _restore_error(self, request: web.Request) -> web.Response:
        await request.read()  # the client prints the error, too, and ends
        return _accepted()


def _accepted() -> web.Response:
    return web.json_response({"status": "OK"}, status=202)


async def _report(request: web.Request) -> ErrorReport:
    body, _ = await _read_at_most(request, LARGEST_RESPONSE_BYTES)
    return ErrorReport.from_body(body, request.headers.get("Lambda-Runtime-Function-Error-Type"))


async def _read_at_most(request: web.Request, limit_bytes: int) -> tuple[bytes, int]:
    """Read the whole body, keep at most `limit_bytes` of it, and return that with the body's size."""
    kept = bytearray()
    size_bytes = 0
    async for chunk in request.content.iter_chunked(READ_BYTES):
        size_bytes += len(chunk)
        kept += chunk[: max(0, limit_bytes - len(kept))]
    return bytes(kept), size_bytes
