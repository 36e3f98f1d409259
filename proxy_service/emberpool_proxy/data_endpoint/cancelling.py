"""Asks the database to stop the statement that a session runs."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg
from psycopg import pq

from emberpool_proxy.data_endpoint.session import Session
from emberpool_proxy.data_endpoint.waiting import readable, writable

CANCEL_SECONDS = 3.0  # for the request; PgBouncer drops one for a statement that it has not sent on yet


async def cancel(session: Session, seconds: float = CANCEL_SECONDS) -> None:
    """Send a cancel request and wait until it was delivered; it may still have come too late, or to nobody."""
    if not session.is_usable:
        return
    request = session.cancel_connection()
    try:
        async with asyncio.timeout(seconds):
            request.start()
            while (state := request.poll()) not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
                await (readable if state == pq.PollingStatus.READING else writable)(request.socket)
    except (psycopg.Error, TimeoutError, OSError):
        pass  # what became of the statement, its connection will say
    finally:
        with contextlib.suppress(psycopg.Error):
            request.finish()
