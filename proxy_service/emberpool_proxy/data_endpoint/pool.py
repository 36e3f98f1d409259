"""The sessions of all callers at the local PgBouncers, each kept for the next call of the same caller.

A session is no connection to the database, PgBouncer shares those; so a call may have a session of its own, up to a
bound. The one that was used last is used next, and the others are closed after a minute.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import DATABASE_UNAVAILABLE, SERVICE_UNAVAILABLE, THROTTLED, DataError
from emberpool_proxy.data_endpoint.login import APPLICATION_NAME, log_in
from emberpool_proxy.data_endpoint.session import IDLE, Session

IDLE_SECONDS = 60.0
LOGIN_SECONDS = 15.0  # PgBouncer lets nobody in before it has reached the database, and waits for that itself
WAIT_SECONDS = 10.0
_LOOKS_AT_IDLE = 6  # in IDLE_SECONDS

Key = tuple[str, str, str]


class _Shelf:
    """The sessions of one caller with one password."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.idle: list[Session] = []  # the last used last
        self.waiting: deque[asyncio.Future[Session | None]] = deque()
        self.sessions = 0
        self.is_retired = False


class SessionPool:
    """Sessions at the PgBouncers with sockets in `folders`; at most `most_sessions` of each caller and password."""

    def __init__(
        self,
        folders: Sequence[Path],
        port: int,
        most_sessions: int = 200,
        wait_seconds: float = WAIT_SECONDS,
        login_seconds: float = LOGIN_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._folders = folders
        self._port = port
        self._most_sessions = most_sessions
        self._wait_seconds = wait_seconds
        self._login_seconds = login_seconds
        self._idle_seconds = idle_seconds
        self._shelves: dict[Key, _Shelf] = {}
        self._shelf_of: dict[Session, _Shelf] = {}
        self._turn = itertools.count()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._shelf_of)

    def idle(self, caller: Caller) -> Session | None:
        """Return a session that waits for work, without any wait of the caller's; None when there is none."""
        shelf = self._shelves.get((caller.name, caller.entry, caller.password))
        return shelf.idle.pop() if shelf and shelf.idle else None

    async def take(self, caller: Caller) -> Session:
        """Return a session, to be given back by `give`. Raises DataError: nothing has run."""
        if self._is_closed:
            raise DataError(SERVICE_UNAVAILABLE, "this task of the data endpoint is stopping; try again")
        shelf = self._shelf(caller)
        while not shelf.idle:
            if shelf.sessions < self._most_sessions:
                return await self._new(shelf)
            if session := await self._wait(shelf):
                return session
        return shelf.idle.pop()

    def give(self, session: Session) -> None:
        """Take a session back that its user is done with; one that is lost, bloated, or in a transaction is closed."""
        shelf = self._shelf_of.get(session)
        if shelf is None:
            return
        is_in_use = session.is_running or session.transaction_status != IDLE
        if is_in_use or session.is_bloated or not session.is_usable:
            self.discard(session)
            return
        while shelf.waiting:
            waiting = shelf.waiting.popleft()
            if not waiting.done():
                waiting.set_result(session)
                return
        if shelf.is_retired or self._is_closed:
            self.discard(session)
            return
        session.idle_since = asyncio.get_running_loop().time()
        session.when_lost = self._drop_idle
        shelf.idle.append(session)
        if self._sweep is None:
            self._sweep_later()

    def discard(self, session: Session) -> None:
        """Close a session that is not to be used again."""
        session.close()
        shelf = self._shelf_of.pop(session, None)
        if shelf is None:
            return
        shelf.sessions -= 1
        self._left(shelf)

    async def separate(self, caller: Caller, name: str) -> Session:
        """Return a session of its own application_name that is in no pool; its user closes it."""
        return await self._logged_in(caller, name)

    def keep(self, callers: Iterable[Caller]) -> None:
        """Close the sessions of all but these callers: of passwords that were replaced. Those in use end with it."""
        kept = {(caller.name, caller.entry, caller.password) for caller in callers}
        for key, shelf in list(self._shelves.items()):
            shelf.is_retired = key not in kept
            if shelf.is_retired:
                for session in tuple(shelf.idle):
                    self._drop_idle(session)

    def close(self) -> None:
        """Close what is idle at once, and the rest when it is given back."""
        self._is_closed = True
        if self._sweep:
            self._sweep.cancel()
        for shelf in list(self._shelves.values()):
            for session in tuple(shelf.idle):
                self._drop_idle(session)

    def _shelf(self, caller: Caller) -> _Shelf:
        key = (caller.name, caller.entry, caller.password)
        if key not in self._shelves:
            self._shelves[key] = _Shelf(caller)
        return self._shelves[key]

    async def _wait(self, shelf: _Shelf) -> Session | None:
        """Return the session that somebody gives back, None when one may be opened."""
        waiting: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(waiting)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled():
                self._pass_on(shelf, waiting.result())  # it came in the same moment
            elif waiting in shelf.waiting:  # not if a session was offered to it after it was cancelled
                shelf.waiting.remove(waiting)
            if isinstance(error, TimeoutError):
                raise DataError(
                    THROTTLED,
                    f"all {self._most_sessions} sessions of this user have been busy for {self._wait_seconds:g} s: "
                    "send fewer calls at once",
                ) from None
            raise

    def _pass_on(self, shelf: _Shelf, session: Session | None) -> None:
        if session:
            self.give(session)
        else:
            self._left(shelf)

    async def _new(self, shelf: _Shelf) -> Session:
        shelf.sessions += 1
        try:
            session = await self._logged_in(shelf.caller, APPLICATION_NAME)
        except BaseException:
            shelf.sessions -= 1
            self._left(shelf)
            raise
        self._shelf_of[session] = shelf
        return session

    async def _logged_in(self, caller: Caller, name: str) -> Session:
        """Log in at one of the PgBouncers, another one each time; one that does not answer is passed over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._login_seconds
        first = next(self._turn)
        for tried in range(len(self._folders)):
            folder = self._folders[(first + tried) % len(self._folders)]
            try:
                return await log_in(folder, self._port, caller, until - loop.time(), name)
            except DataError as error:
                if error.kind != DATABASE_UNAVAILABLE or tried + 1 == len(self._folders) or loop.time() >= until:
                    raise
        raise DataError(DATABASE_UNAVAILABLE, "this task has no pool")

    def _left(self, shelf: _Shelf) -> None:
        """Let somebody open a session in place of one that is gone."""
        while shelf.waiting:
            waiting = shelf.waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        caller = shelf.caller
        if not shelf.sessions:
            self._shelves.pop((caller.name, caller.entry, caller.password), None)

    def _drop_idle(self, session: Session) -> None:
        shelf = self._shelf_of.get(session)
        if shelf and session in shelf.idle:  # it may have been taken in the same moment
            shelf.idle.remove(session)
        self.discard(session)

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._idle_seconds / _LOOKS_AT_IDLE, self._close_idle, loop)

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        unused_since = loop.time() - self._idle_seconds
        for shelf in list(self._shelves.values()):
            while shelf.idle and shelf.idle[0].idle_since <= unused_since:
                self._drop_idle(shelf.idle[0])
        if any(shelf.idle for shelf in self._shelves.values()):
            self._sweep_later()
