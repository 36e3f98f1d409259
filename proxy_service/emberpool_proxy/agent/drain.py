"""Ends the pool without losing a query: nothing new arrives, idle clients are closed bit by bit, then PgBouncer ends.

Who is closed when is decided by `choose`, which is pure. PgBouncer closes them itself, by its `client_idle_timeout`:
it looks whether a client is between transactions and closes it in one step. KILL_CLIENT cannot: whoever begins a
transaction after our look loses it (measured: 60 of 330 transactions of busy clients were lost, 4 of them had run;
by client_idle_timeout none of 1,100).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import psycopg

from emberpool_proxy.agent.engines import Engine, Engines
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.rows import ADMIN_DATABASE, ClientRow
from emberpool_proxy.settings import ProxySettings

IDLE_TIMEOUT = "client_idle_timeout"
# Of a client that is never idle for longer, the last word is SHUTDOWN's.
SHORTEST_IDLE_SECONDS = 0.0005
LONGEST_STEP_SECONDS = 1.0  # SHOW CLIENTS is dear with thousands of clients
SHORTEST_STEP_SECONDS = 0.4  # PgBouncer applies the timeout three times a second
# Below this age, which is seen by the second, a timeout is felt for: a longer stride may close nearly all at once.
# Many strides lead down to clients that are idle for milliseconds, so each of them is a short step.
FELT_BELOW_SECONDS, LONGEST_STRIDE = 2.0, 0.6
BEFORE_ALL = datetime.min  # noqa: DTZ901 (PgBouncer prints local times; only differences are used)
STEPS = 20  # a short drain has shorter steps
CONSOLE_SECONDS = 10.0
WITHDRAW_SECONDS = 30.0
PROBE_SECONDS = 0.05
IDLE_STATES = ("active", "idle")  # 1.24 calls an idle client active, too: it has no link


class Withdrawable(Protocol):
    """A registration that leads new clients here."""

    async def withdraw(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Choice:
    """PgBouncer's `client_idle_timeout` for one step of the drain: it closes who has been idle for longer.

    `clients` is how many there were then, `share` how many of them should be closed in this step. `bias` corrects the
    ages that are seen, by what the steps before have closed.
    """

    idle_seconds: float
    clients: int
    share: float
    bias: float = 1.0


def choose(idle: Sequence[int], busy: int, steps_left: int, last: Choice | None, rng: random.Random) -> Choice:
    """Return how long a client must have been idle to be closed now; those idle for longest are closed first.

    `idle` has the whole seconds for which each client has been idle, `busy` counts those in a transaction or waiting
    for one. An equal share of the clients for each step that is left, half more or less at random. The last step
    closes everybody who is not in a transaction.
    """
    clients = len(idle) + busy
    if steps_left <= 1:
        return Choice(SHORTEST_IDLE_SECONDS, clients, clients)
    share = clients / steps_left * rng.uniform(0.5, 1.5)
    timeout, bias = _age_of_share(idle, share), 1.0
    if timeout < FELT_BELOW_SECONDS and last:
        bias = min(max(last.bias * _correction(last.clients - clients, last.share), SHORTEST_IDLE_SECONDS), 1.0)
        timeout = max(timeout * bias, min(last.idle_seconds, FELT_BELOW_SECONDS) * LONGEST_STRIDE)
    timeout = max(timeout, SHORTEST_IDLE_SECONDS)
    return Choice(timeout, clients, share, bias)


def step_seconds(drain_seconds: float, last: Choice | None) -> float:
    """Return how long the choice after `last` holds."""
    if last and last.idle_seconds < FELT_BELOW_SECONDS:
        return SHORTEST_STEP_SECONDS
    return min(max(drain_seconds / STEPS, SHORTEST_STEP_SECONDS), LONGEST_STEP_SECONDS)


def _correction(closed: int, share: float) -> float:
    """Return by what to multiply the timeout after a step that closed so many instead of its share."""
    if closed <= 0:
        return 0.6
    if closed < share / 2:
        return 0.85
    return min(closed / share, 2.0) if closed > share * 1.5 else 1.0


def _age_of_share(idle: Sequence[int], share: float) -> float:
    """Return the age above which about `share` clients are; they count as spread evenly over their second."""
    older = 0
    for age, count in sorted(Counter(idle).items(), reverse=True):
        if older + count >= share:
            # Both times are cut to the second, so an age of 3 is one between 2 and 4.
            highest, lowest = age + 1.0, max(age - 1.0, 0.0)
            return highest - (share - older) / count * (highest - lowest)
        older += count
    return 0.0  # more than are idle: whoever is


def idle_seconds(rows: Sequence[ClientRow]) -> tuple[list[int], int]:
    """Return for how many seconds each idle client has been idle, and how many clients are busy.

    PgBouncer prints local times by the second. The console's own row is the newest: it has just asked.
    """
    times = {text: _time(text) for text in {row.request_time for row in rows}}
    now = max(times.values(), default=BEFORE_ALL)
    clients = [row for row in rows if row.database != ADMIN_DATABASE]
    idle = [row for row in clients if not row.link and row.state in IDLE_STATES]
    return [int((now - times[row.request_time]).total_seconds()) for row in idle], len(clients) - len(idle)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text[:19], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 (only differences are used)
    except ValueError:
        return BEFORE_ALL


class Drain:
    """The drain of one task. `registration` is withdrawn first; all is over within `stop_seconds`.

    `stand_in` says what to SET, and has RELOADs leave it so: see Rendering.
    """

    def __init__(
        self,
        settings: ProxySettings,
        engines: Engines,
        health: Health,
        registration: Withdrawable,
        stand_in: Callable[[Engine, Mapping[str, str | None]], Mapping[str, str]],
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._health = health
        self._registration = registration
        self._stand_in = stand_in
        self._rng = rng or random.Random()  # noqa: S311 (jitter)

    async def run(self) -> None:
        """Drain every PgBouncer; return when all have ended. Transactions that last too long are ended at last."""
        settings = self._settings
        self._health.is_draining = True
        notice_seconds = settings.balancer_notice_seconds
        fields = {"balancer_notice_seconds": notice_seconds, "drain_seconds": settings.drain_seconds}
        logger.info("draining", extra={"fields": fields})
        try:
            async with asyncio.timeout(settings.stop_seconds):
                # Whoever is closed must find another task: first nothing leads here any more.
                await asyncio.gather(self._withdraw(), asyncio.sleep(notice_seconds))
                await asyncio.gather(*(self._drain(engine) for engine in self._engines.all))
        except TimeoutError:
            logger.error(
                "transactions were still running after stop_seconds: ending them",
                extra={"fields": {"stop_seconds": settings.stop_seconds}},
            )
            for engine in self._engines.all:
                self._engines.kill(engine)
        else:
            logger.info("every client was closed between transactions")

    async def _withdraw(self) -> None:
        try:
            await asyncio.wait_for(self._registration.withdraw(), WITHDRAW_SECONDS)
        except TimeoutError:
            logger.warning("the registration was not withdrawn in time: draining without it")

    async def _drain(self, engine: Engine) -> None:
        until = asyncio.get_running_loop().time() + self._settings.drain_seconds
        pid = engine.pid
        while engine.pid and engine.pid == pid:
            if engine.console is None:
                await asyncio.sleep(PROBE_SECONDS)  # it is being attached to
                continue
            try:
                await self._close_idle_clients(engine, engine.console, until)
                async with asyncio.timeout(CONSOLE_SECONDS):
                    await engine.console.shutdown_when_servers_are_free()
                break
            except (psycopg.Error, TimeoutError) as error:
                await asyncio.sleep(PROBE_SECONDS)
                await self._connect_again(engine, error)
        while engine.pid:  # noqa: ASYNC110 (the supervisor's word is taken over by the agent, with no event each)
            await asyncio.sleep(PROBE_SECONDS)

    async def _connect_again(self, engine: Engine, error: Exception) -> None:
        if not engine.pid:
            return  # it has ended, and its console with it
        try:
            engine.console = await self._engines.connect(engine)
        except psycopg.OperationalError:
            # It ends, or hangs; stop_seconds bounds both.
            logger.debug("pgbouncer's console failed in the drain: %s", repr(error))

    async def _close_idle_clients(self, engine: Engine, console: AdminConsole, until: float) -> None:
        loop = asyncio.get_running_loop()
        last: Choice | None = None
        while (left := until - loop.time()) > 0:
            async with asyncio.timeout(CONSOLE_SECONDS):
                idle, busy = idle_seconds(await console.show_clients())
                if not idle and not busy:
                    return
                step = step_seconds(self._settings.drain_seconds, last)
                last = choose(idle, busy, int(left / step), last, self._rng)
                for name, value in self._stand_in(engine, {IDLE_TIMEOUT: f"{last.idle_seconds:.4f}"}).items():
                    await console.set(name, value)
            await asyncio.sleep(min(step, left))
