"""The HTTP server: granian in this process's own loop, with the certificate that PgBouncer has, too."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from emberpool_proxy.addresses import ANY_IPV4, ANY_IPV6, has_ipv6
from emberpool_proxy.log import logger
from emberpool_proxy.settings import EVERY_ADDRESS

MOST_CONNECTIONS = 8000  # half-open ones wait in the kernel then
BACKLOG = 4096
LOOK_SECONDS = 5.0  # at the certificate's file
SETTLE_SECONDS = 0.5  # certificate and key are written one after the other
GRACE_SECONDS = 5.0  # for answers that are being written when all calls have ended


class Listener:
    """Serves `app` (RSGI) on a port. `certificate` has the files of certificate and key, None without TLS.

    A connection is closed when no request's headers have come for `header_seconds`, the first as well as the next.
    """

    def __init__(
        self, app: Any, host: str, port: int, certificate: tuple[Path, Path] | None, header_seconds: float
    ) -> None:
        self._certificate = certificate
        certificate_file, key_file = certificate or (None, None)
        every = ANY_IPV6 if has_ipv6() else ANY_IPV4
        self._server = Server(
            app,
            address=every if host == EVERY_ADDRESS else host,
            port=port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,  # no SDK speaks HTTP/2 to this service
            http1_settings=HTTP1Settings(header_read_timeout=int(header_seconds * 1000)),
            websockets=False,
            backlog=BACKLOG,
            backpressure=MOST_CONNECTIONS,
            log_enabled=False,
            ssl_cert=certificate_file,
            ssl_key=key_file,
        )

    async def run(self) -> None:
        """Serve until `stop`. A new certificate is for new connections."""
        following = asyncio.create_task(self._follow_certificate())
        try:
            await self._server.serve()
        finally:
            following.cancel()

    def stop(self) -> None:
        """Accept no more, and let `run` end when the answers are written."""
        self._server.stop()  # type: ignore[no-untyped-call]

    async def _follow_certificate(self) -> None:
        served = self._stamp()
        while self._certificate:
            await asyncio.sleep(LOOK_SECONDS)
            found = self._stamp()
            if found in (served, None):
                continue
            await asyncio.sleep(SETTLE_SECONDS)
            if found == self._stamp():
                served = found
                logger.info("the data endpoint serves another certificate from now on")
                self._server.reload()  # type: ignore[no-untyped-call]

    def _stamp(self) -> tuple[int, ...] | None:
        with contextlib.suppress(OSError):
            return tuple(value for path in self._certificate or () for value in (path.stat().st_mtime_ns,))
        return None
