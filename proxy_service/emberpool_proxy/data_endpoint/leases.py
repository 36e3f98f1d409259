"""Open transactions: each holds a session, and with it a server connection, until it ends or nobody uses it any more.

Owns who may use which, for how long and how many at once, and keeps PgBouncer's idle_transaction_timeout away from
them: that one is for clients who vanished, and much shorter than what the service promises.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import (
    SERVICE_UNAVAILABLE,
    THROTTLED,
    TRANSACTION_NOT_FOUND,
    DataError,
    bad_request,
)
from emberpool_proxy.data_endpoint.session import Session, SessionLost
from emberpool_proxy.data_endpoint.steps import NOTHING

LOOK_SECONDS = 1.0
# A third of PgBouncer's default here, 15 s; a setting per user or database would not do: PgBouncer takes the server's
# user, which functions and data endpoint share.
KEEP_ALIVE_SECONDS = 5.0
QUEUE_SECONDS = 5.0
MOST_QUEUED = 16
_MOST_REMEMBERED = 1000  # transactions that ended, and why
_TOKEN_BYTES = 16

OPEN_TOO_LONG, IDLE_TOO_LONG = "it was open for more than {:g} s", "no call used it for {:g} s"


Address = tuple[str, int]  # host and port of a task's data endpoint


@dataclass(eq=False)
class Lease:
    """One open transaction. `lock` is held while a call uses it."""

    id: str
    caller: Caller
    session: Session
    began_at: float
    idle_since: float
    kept_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    queued: int = 0
    ended: str = ""  # why it is no more


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """How long a transaction may be unused and open, how many may be open at once, and how long a call waits for it."""

    idle_seconds: float = 180.0
    open_seconds: float = 86_400.0
    most_open: int = 100
    queue_seconds: float = QUEUE_SECONDS
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    look_seconds: float = LOOK_SECONDS


class Leases:
    """The open transactions of this task, whose address is in their ids. `take_back` rolls one back."""

    def __init__(
        self,
        limits: LeaseLimits,
        address: Address | None,
        take_back: Callable[[Lease, str], Coroutine[None, None, None]],
    ) -> None:
        self._limits = limits
        self._address = address
        self._take_back = take_back
        self._leases: dict[str, Lease] = {}
        self._ended: OrderedDict[str, tuple[str, str]] = OrderedDict()  # id: whose, and why
        self._opening = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._none_open = asyncio.Event()  # in a drain

    def __len__(self) -> int:
        return len(self._leases)

    async def open(self, caller: Caller, begin: Callable[[], Awaitable[Session]]) -> Lease:
        """Return a new lease of the session that `begin` has begun a transaction on. Raises DataError."""
        if self._is_draining:
            raise DataError(SERVICE_UNAVAILABLE, "this task of the data endpoint is stopping; try again")
        if len(self._leases) + self._opening >= self._limits.most_open:
            raise DataError(
                THROTTLED,
                f"{self._limits.most_open} transactions are open in this task, the most that may be: end some",
            )
        self._opening += 1
        try:
            session = await begin()
        finally:
            self._opening -= 1
        now = asyncio.get_running_loop().time()
        lease = Lease(new_id(self._address), caller, session, now, now, now)
        session.when_lost = lambda _: self._drop(lease, "its connection to the database was lost")
        self._leases[lease.id] = lease
        self._look_later()
        return lease

    @asynccontextmanager
    async def use(self, transaction_id: str, caller: Caller) -> AsyncIterator[Lease]:
        """Hold the lease while a call uses it. Raises DataError when there is none, or it stays in use."""
        lease = self._leases.get(transaction_id)
        if lease is None or lease.caller.name != caller.name:
            raise self._not_found(transaction_id, caller)
        await self._acquire(lease)
        try:
            if lease.ended:
                raise self._not_found(transaction_id, caller)
            yield lease
        finally:
            lease.idle_since = lease.kept_at = asyncio.get_running_loop().time()
            lease.lock.release()
            if not lease.session.is_usable:
                self._drop(lease, "its connection to the database was lost")

    def end(self, lease: Lease, why: str) -> None:
        """Forget a lease, whose session goes back to who gave it; `why` is what later calls hear."""
        lease.ended = why
        lease.session.when_lost = None
        if self._leases.pop(lease.id, None):
            self._ended[lease.id] = (lease.caller.name, why)
            if len(self._ended) > _MOST_REMEMBERED:
                self._ended.popitem(last=False)
            if self._is_draining and not self._leases:
                self._none_open.set()

    async def close(self, seconds: float) -> None:
        """Open no more, wait so long for the open ones to end, and roll back those that have not."""
        self._is_draining = True
        if self._leases and seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._none_open.wait()
        for lease in list(self._leases.values()):
            self._drop(lease, "the task that held it has stopped")
        if self._timer:
            self._timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _acquire(self, lease: Lease) -> None:
        if not lease.lock.locked():
            await lease.lock.acquire()  # at once
            return
        if lease.queued >= MOST_QUEUED:
            raise bad_request(
                f"Transaction {lease.id} is still running a query: {MOST_QUEUED} calls wait for it already"
            )
        lease.queued += 1
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                await lease.lock.acquire()
        except TimeoutError:
            raise bad_request(
                f"Transaction {lease.id} is still running a query, after {self._limits.queue_seconds:g} s: "
                "send the calls of a transaction one after the other"
            ) from None
        finally:
            lease.queued -= 1

    def _not_found(self, transaction_id: str, caller: Caller) -> DataError:
        whose, why = self._ended.get(transaction_id, ("", ""))
        if whose != caller.name:
            why = "it has ended, or it is not yours"
        return DataError(TRANSACTION_NOT_FOUND, f"Transaction {transaction_id} is not found: {why}")

    def _drop(self, lease: Lease, why: str) -> None:
        """End a lease that its caller has not ended: roll it back, or see that PostgreSQL has."""
        if not lease.ended:
            self.end(lease, f"{why}, and it was rolled back")
            self._in_background(self._take_back(lease, why))

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.look_seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        limits, now = self._limits, asyncio.get_running_loop().time()
        for lease in list(self._leases.values()):
            if now - lease.began_at > limits.open_seconds:
                self._drop(lease, OPEN_TOO_LONG.format(limits.open_seconds))
            elif lease.lock.locked():
                continue
            elif now - lease.idle_since > limits.idle_seconds:
                self._drop(lease, IDLE_TOO_LONG.format(limits.idle_seconds))
            elif now - lease.kept_at > limits.keep_alive_seconds:
                lease.kept_at = now
                self._in_background(self._keep_alive(lease))
        if self._leases:
            self._look_later()

    async def _keep_alive(self, lease: Lease) -> None:
        """Send an empty query, which an aborted transaction takes too: PgBouncer counts from the last one."""
        async with lease.lock:
            if lease.ended:
                return
            try:
                async with asyncio.timeout(self._limits.keep_alive_seconds):
                    await lease.session.run([NOTHING])
            except TimeoutError:
                lease.session.close()
                self._drop(lease, "its connection to the database did not answer")
            except SessionLost:
                self._drop(lease, "its connection to the database was lost")

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_id(address: Address | None) -> str:
    """Return an id that nobody guesses, with the address of its task."""
    where = f"{address[0]}:{address[1]}" if address else ""
    return f"{secrets.token_urlsafe(_TOKEN_BYTES)}.{base64.urlsafe_b64encode(where.encode()).decode().rstrip('=')}"


def owner_of(transaction_id: str) -> Address | None:
    """Return the address of the task that holds a transaction, as its id says; None if the id is none of ours."""
    _, _, where = transaction_id.partition(".")
    try:
        host, _, port = base64.urlsafe_b64decode(where + "=" * (-len(where) % 4)).decode().rpartition(":")
        return (host, int(port)) if host else None
    except ValueError:  # binascii's and Unicode's are such
        return None
