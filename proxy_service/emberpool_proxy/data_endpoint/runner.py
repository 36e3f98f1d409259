"""Runs a caller's pipeline until it ends, its time is up, its client has gone, or its result is too large.

Whatever stops it, nothing of it goes on in the database once run() is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from emberpool_proxy.data_endpoint.cancelling import CANCEL_SECONDS, cancel
from emberpool_proxy.data_endpoint.deadlines import Deadlines
from emberpool_proxy.data_endpoint.session import Session, SessionLost
from emberpool_proxy.data_endpoint.steps import Outcome, Step

TIME_IS_UP, CLIENT_HAS_GONE, TOO_LARGE = "its time was up", "its client has gone", "its result is too large"
# PgBouncer drops a cancel request for a statement that still waits for a server connection, and a backend may be deaf:
# then the connection is closed, and the backend ends when it finds that out.
STOP_SECONDS = 2.0


class _Stop:
    """The end of a statement that is being stopped, and why."""

    def __init__(self, session: Session, why: str) -> None:
        loop = asyncio.get_running_loop()
        self.why = why
        self._session = session
        self._request = loop.create_task(cancel(session))
        self._closing = loop.call_later(CANCEL_SECONDS + STOP_SECONDS, session.close, f"it did not stop when {why}")

    async def settled(self) -> None:
        """Return once the cancel request is through: one that is on its way would stop the next statement."""
        self._closing.cancel()
        if not self._request.done():
            try:
                await asyncio.shield(self._request)
            except asyncio.CancelledError:
                self._session.close()
                raise

    def abandon(self) -> None:
        """Forget it: the session is closed."""
        self._closing.cancel()
        self._request.cancel()


class Runner:
    """Runs pipelines for at most `seconds` each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadlines: Deadlines[Session] = Deadlines()
        self._stops: dict[Session, _Stop] = {}

    async def run(
        self, session: Session, steps: Sequence[Step], most_bytes: int = 0, drops_rows: bool = False, stops: bool = True
    ) -> tuple[list[Outcome], str]:
        """Return the outcomes, and why it was stopped if it was. Raises SessionLost.

        A result above `most_bytes` stops it, unless `drops_rows`. When the caller is cancelled the statement is too, if
        `stops`; its outcomes are returned nevertheless, for it may have been too late.
        """
        waiting = session.run(steps, most_bytes)
        if most_bytes:
            session.when_overflowing = None if drops_rows else lambda: self.stop(session, TOO_LARGE)
        if session.is_running:
            self._deadlines.set(session, asyncio.get_running_loop().time() + self.seconds, self._time_is_up)
        try:
            outcomes = await waiting
        except asyncio.CancelledError:
            outcomes = await self._after_client(session, waiting, stops)
        except SessionLost:
            self._forget(session)
            raise
        self._deadlines.clear(session)
        if self._stops and (stop := self._stops.pop(session, None)):
            await stop.settled()
            return outcomes, stop.why
        return outcomes, ""

    def stop(self, session: Session, why: str) -> None:
        """Stop what the session runs; its run() then returns."""
        if session not in self._stops and session.is_running:
            self._stops[session] = _Stop(session, why)

    async def _after_client(
        self, session: Session, waiting: asyncio.Future[list[Outcome]], stops: bool
    ) -> list[Outcome]:
        if stops and session.is_running:
            self.stop(session, CLIENT_HAS_GONE)
        try:
            outcomes = await (session.ended() if waiting.cancelled() else waiting)
        except asyncio.CancelledError:
            session.close()
            raise SessionLost("nobody waits for it any more") from None
        else:
            if task := asyncio.current_task():
                task.uncancel()  # the outcome decides whether the caller's work goes on
            return outcomes
        finally:
            if not session.is_usable:
                self._forget(session)

    def _time_is_up(self, session: Session) -> None:
        self.stop(session, TIME_IS_UP)

    def _forget(self, session: Session) -> None:
        self._deadlines.clear(session)
        if stop := self._stops.pop(session, None):
            stop.abandon()
