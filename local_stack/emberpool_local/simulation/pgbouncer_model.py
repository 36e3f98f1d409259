"""One pool of a simulated PgBouncer: what it does with its limit, logins, clients in line, and connections to close.

It follows what was measured of PgBouncer: a lower limit alone closes nothing, a short server_lifetime closes a
connection when it comes free, logins are one at a time, and a process that starts reads a limit of 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol

from emberpool_local.simulation.clock import Clock
from emberpool_local.simulation.database import DatabaseAway
from emberpool_local.simulation.timing import Timing, draw
from emberpool_proxy.agent.budget_reading import PoolUse

START_LIMIT = 1  # in the file that a starting PgBouncer reads
CUT_OFF_RETRY_SECONDS = 0.2  # a transaction across a silent partition goes on when TCP has repeated it


class Host(Protocol):
    """The task around a pool: its way to the database, and its backends there."""

    is_partitioned: bool

    def open_backend(self) -> None:
        """Have one more backend in the database; raises DatabaseAway."""

    def end_backends_in(self, seconds: float, number: int = 1) -> None:
        """Have so many backends gone after that time."""


class Pool:
    """One pool: an entry of [databases] in one PgBouncer process."""

    def __init__(
        self, clock: Clock, random: Random, timing: Timing, host: Host, transaction_seconds: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._random = random
        self._timing = timing
        self._host = host
        self._transaction_seconds = transaction_seconds
        self.on_served: Callable[[], None] = lambda: None
        self.is_running = True
        self.limit = START_LIMIT
        self.shrinks = False
        self.idle = 0
        self.waiting: deque[float] = deque()
        self.served = 0
        self._ends: dict[int, float] = {}  # of each busy server's transaction
        self._transactions = 0
        self._is_logging_in = False
        self._has_login_backend = False
        self._least_idle = 0
        self._incarnation = 0  # of all servers: what was under way before has no effect
        clock.after(draw(random, (0.0, timing.server_idle)), self._close_unused)

    @property
    def busy(self) -> int:
        """Servers at work."""
        return len(self._ends)

    @property
    def servers(self) -> int:
        """Servers open or being opened."""
        return self.idle + len(self._ends) + self._is_logging_in

    def use(self, *, is_settling: bool) -> PoolUse:
        """Answer SHOW POOLS."""
        waited = self._clock.now - self.waiting[0] if self.waiting else 0.0
        return PoolUse(self.limit, self.servers, self.busy, len(self.waiting), waited, is_settling)

    def query(self) -> None:
        """Run a client's transaction, now or when a server comes free."""
        if self.idle and not self.waiting:
            self.idle -= 1
            self._least_idle = min(self._least_idle, self.idle)
            self._start()
        else:
            self.waiting.append(self._clock.now)
            self._grow()

    def set_limit(self, limit: int, *, shrinks: bool) -> None:
        """Put a limit in force, and close what is above it as it comes free if it `shrinks`."""
        self.limit = limit
        self.shrinks = shrinks
        if shrinks and self.idle and self.servers > limit:
            self._clock.after(draw(self._random, self._timing.idle_close), self._close_idle, self._incarnation)
        self._grow()

    def kill(self) -> None:
        """End as SIGKILL does: idle backends see the end at once, busy ones when they look for it."""
        now = self._clock.now
        for end in self._ends.values():
            # A transaction that fell due in a partition ends when the backend looks for its client.
            left = end - now if end > now else self._timing.orphan_check
            self._host.end_backends_in(min(left, self._timing.orphan_check * self._random.random()))
        if others := self.idle + self._has_login_backend:
            self._host.end_backends_in(draw(self._random, self._timing.backend_end), others)
        self.is_running = False
        self.waiting.clear()
        self.forget_servers()

    def start(self) -> None:
        """Start again, with the limit that its file says."""
        self.is_running = True
        self.limit = START_LIMIT
        self.shrinks = False

    def forget_servers(self) -> None:
        """Lose all servers; whoever caused it has counted the backends. Clients in line stay there."""
        self._incarnation += 1
        cut = len(self._ends)
        self._ends.clear()
        self.idle = self._least_idle = 0
        self._is_logging_in = self._has_login_backend = False
        if self.is_running:
            for _ in range(cut):
                self.on_served()
            self._grow()

    def _start(self) -> None:
        self._transactions += 1
        seconds = self._transaction_seconds()
        self._ends[self._transactions] = self._clock.now + seconds
        self._clock.after(seconds, self._finish, self._incarnation, self._transactions)

    def _finish(self, incarnation: int, transaction: int) -> None:
        if incarnation != self._incarnation:
            return
        if self._host.is_partitioned:
            self._clock.after(CUT_OFF_RETRY_SECONDS, self._finish, incarnation, transaction)
            return
        del self._ends[transaction]
        self.served += 1
        self.on_served()
        if self.shrinks and self.servers + 1 > self.limit:
            self._host.end_backends_in(draw(self._random, self._timing.backend_end))
            self._grow()
        else:
            self._put_to_use()

    def _put_to_use(self) -> None:
        if self.waiting:
            self.waiting.popleft()
            self._start()
        else:
            self.idle += 1

    def _grow(self) -> None:
        if self.is_running and self.waiting and not self._is_logging_in and self.servers < self.limit:
            self._is_logging_in = True
            seconds = draw(self._random, self._timing.server_login)
            self._clock.after(seconds / 2, self._reach_database, self._incarnation, seconds / 2)

    def _reach_database(self, incarnation: int, rest_seconds: float) -> None:
        if incarnation != self._incarnation:
            return
        if self._host.is_partitioned:
            self._clock.after(self._timing.connect_timeout, self._fail_login, incarnation)
            return
        try:
            self._host.open_backend()
        except DatabaseAway:
            self._clock.after(self._timing.login_retry, self._fail_login, incarnation)
        else:
            self._has_login_backend = True
            self._clock.after(rest_seconds, self._log_in, incarnation)

    def _fail_login(self, incarnation: int) -> None:
        if incarnation == self._incarnation:
            self._is_logging_in = False
            self._grow()

    def _log_in(self, incarnation: int) -> None:
        if incarnation != self._incarnation:
            return
        self._is_logging_in = self._has_login_backend = False
        self._put_to_use()
        if self.shrinks and self.idle and self.servers > self.limit:
            self._clock.after(draw(self._random, self._timing.idle_close), self._close_idle, self._incarnation)
        self._grow()

    def _close_idle(self, incarnation: int) -> None:
        if incarnation != self._incarnation or not self.shrinks:
            return
        if (surplus := min(self.idle, self.servers - self.limit)) > 0:
            self._close(surplus)

    def _close(self, number: int) -> None:
        self.idle -= number
        for _ in range(number):
            self._host.end_backends_in(draw(self._random, self._timing.backend_end))

    def _close_unused(self) -> None:
        """Close the servers that nobody needed since the last time (server_idle_timeout)."""
        if unused := min(self._least_idle, self.idle):
            self._close(unused)
        self._least_idle = self.idle
        self._clock.after(self._timing.server_idle, self._close_unused)
