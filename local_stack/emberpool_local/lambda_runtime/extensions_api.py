"""The Lambda Extensions API for one execution environment: extensions inside the runtime's own process.

Owns their registration and their wait for an event. There is never an event: an internal extension without events
registers so that Lambda sends SIGTERM before it ends the environment. Extensions with events are refused.
"""

from __future__ import annotations

import asyncio
import uuid

from aiohttp import web

BASE = "/2020-01-01/extension"
IDENTIFIER = "Lambda-Extension-Identifier"


class ExtensionsApi:
    """The paths that extensions call; part of the environment's Runtime API server."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # by identifier
        self._waiting: set[str] = set()
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def is_registered(self) -> bool:
        """Whether an extension registered."""
        return bool(self._names)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the paths to a server."""
        router.add_post(BASE + "/register", self._register)
        router.add_get(BASE + "/event/next", self._next)

    async def close_registration(self) -> None:
        """Take no more extensions and wait until each one waits for an event: the initialisation lasts until then."""
        self._is_closed = True
        while self._names.keys() - self._waiting:
            self._changed.clear()
            await self._changed.wait()

    async def _register(self, request: web.Request) -> web.Response:
        name = request.headers.get("Lambda-Extension-Name")
        if not name:
            return _refused("Extension.InvalidExtensionName", "Empty extension name")
        try:
            events = (await request.json()).get("events", [])
        except (ValueError, AttributeError):
            return _refused("InvalidRequestFormat", "the body is no JSON object")
        if events:
            return _refused("Extension.InvalidEventType", f"{events}: the local stack has no events for extensions")
        if self._is_closed:
            return _refused("Extension.RegistrationClosed", "Extension registration closed already")
        if name in self._names.values():
            return _refused("Extension.InvalidExtensionState", "Extension with this name already registered")
        identifier = str(uuid.uuid4())
        self._names[identifier] = name
        return web.json_response({}, headers={IDENTIFIER: identifier})

    async def _next(self, request: web.Request) -> web.Response:
        identifier = request.headers.get(IDENTIFIER, "")
        if identifier not in self._names:
            return _refused("Extension.UnknownExtensionIdentifier", f"Unknown extension {identifier}")
        self._waiting.add(identifier)
        self._changed.set()
        return await asyncio.Future[web.Response]()  # ends with the extension's process


def _refused(error_type: str, message: str) -> web.Response:
    return web.json_response({"errorType": error_type, "errorMessage": message}, status=403)
