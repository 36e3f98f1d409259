"""Watches the database for the pool: new work waits while it is away, and goes on as soon as it is back.

What to do is database_state's, how the pool is told is database_gate's, how the database is asked database_probe's.
While nothing is wrong this costs three short console commands each database_check_seconds and, only if clients have run
something since, one query through each pool: no connection of our own to the database, and none when nobody works.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from emberpool_proxy.agent.database_gate import Gate, PoolEngines, View, logged_in, worst
from emberpool_proxy.agent.database_probe import AWAY_WORDS, DatabaseProbe
from emberpool_proxy.agent.database_state import (
    Action,
    Alarm,
    Answer,
    DatabaseState,
    Decision,
    Phase,
    Reading,
    pauses_at_once,
    step,
)
from emberpool_proxy.health import DatabaseState as DatabaseHealth
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import Event, ServerConnectionLost, ServerLoginFailed, ServerUnreachable
from emberpool_proxy.settings import ProxySettings

# A storm of lost connections is one reason to look, not hundreds; what cannot wait pauses at once.
LEAST_SECONDS_BETWEEN_READINGS = 0.02
# PgBouncer tells one loss in one or two lines. Losing several connections at once is how a restart begins.
LOSSES_AT_ONCE = 3
AT_ONCE_SECONDS = 0.1
REFUSED_CONNECTION = ("connect failed", "server DNS lookup failed")
HEALTH_OF_PHASE: dict[Phase, DatabaseHealth] = {Phase.AWAY: "paused", Phase.RETURNING: "paused", Phase.OPEN: "away"}


@dataclass
class _Seen:
    """What was asked since the last reading, and what is needed to tell what has changed."""

    alarm: Alarm = Alarm.NONE
    probe: Answer = Answer.NOT_ASKED
    pool: Answer = Answer.NOT_ASKED
    words: str = ""  # the database's, when it was not well


class DatabaseWatch:
    """Keeps clients waiting while the database is away.

    `credentials_for_probe` returns (user, password). `before_return` is awaited before the pool turns to a database
    that is back.
    """

    def __init__(
        self,
        settings: ProxySettings,
        engines: PoolEngines,
        health: Health,
        credentials_for_probe: Callable[[], tuple[str, str]],
        login_turn: asyncio.Lock | None = None,
        before_return: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._engines = engines
        self._health = health
        self._probe = DatabaseProbe(settings, credentials_for_probe, login_turn)
        self._before_return = before_return
        self._gates = {engine.index: Gate(engines, engine) for engine in engines.all}
        self._transactions: dict[int, int] = {}
        self._state = DatabaseState(
            must_be_writable=settings.database_must_be_writable == "yes",
            probe_seconds=settings.database_probe_seconds,
            check_seconds=settings.database_check_seconds,
        )
        self._seen = _Seen()
        self._views: dict[int, View] = {}
        self._doubts: deque[float] = deque(maxlen=LOSSES_AT_ONCE)
        self._alarmed = asyncio.Event()
        self._paused_at_once = asyncio.Event()
        self._away_since = 0.0

    def on_log_event(self, event: Event) -> None:
        """Take in what a line of PgBouncer's log means; an unmistakable one pauses the pool within this call."""
        alarm = alarm_of(event)
        if alarm is Alarm.NONE:
            return
        if alarm is Alarm.DOUBT and self._are_many():
            alarm = Alarm.AWAY
        if pauses_at_once(self._state, alarm) and self._seen.alarm is not Alarm.AWAY:
            self._pause()
            self._paused_at_once.set()
        self._seen.alarm = max(self._seen.alarm, alarm)
        self._alarmed.set()

    def _are_many(self) -> bool:
        self._doubts.append(time.monotonic())
        return len(self._doubts) == LOSSES_AT_ONCE and self._doubts[-1] - self._doubts[0] < AT_ONCE_SECONDS

    async def run(self) -> None:
        """Watch until cancelled. What is paused then stays so: the next agent's watch looks at it first."""
        try:
            while True:
                begun = time.monotonic()
                decision = await self._look_and_decide()
                await self._act(decision)
                await self._wait(decision.wait_seconds)
                if self._state.phase is Phase.SERVING:
                    await asyncio.sleep(begun + LEAST_SECONDS_BETWEEN_READINGS - time.monotonic())
        finally:
            for gate in self._gates.values():
                await gate.close()

    async def _wait(self, seconds: float) -> None:
        if not seconds:
            return
        if self._state.phase is not Phase.SERVING:
            # Alarms tell nothing new now, and must not set the pace of the probes.
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._alarmed.wait()
        except TimeoutError:
            return

    async def _look_and_decide(self) -> Decision:
        seen, self._seen = self._seen, _Seen()
        self._alarmed.clear()
        self._paused_at_once.clear()
        reading = await self._read(seen)
        before = self._state.phase
        self._state, decision = step(self._state, reading)
        self._tell(before, seen, reading)
        return decision

    async def _read(self, seen: _Seen) -> Reading:
        looked = await asyncio.gather(*(gate.look() for gate in self._gates.values()))
        self._views = {index: view for index, view in zip(self._gates, looked, strict=True) if view}
        is_busy = self._is_busy()
        is_paused = [view.state != "active" for view in self._views.values()]
        return Reading(
            now=time.monotonic(),
            alarm=seen.alarm,
            probe=seen.probe,
            pool=seen.pool,
            is_paused=any(is_paused),
            is_all_paused=all(is_paused),
            is_busy=is_busy,
            clients_waiting=sum(view.clients_waiting for view in self._views.values()),
            servers=sum(view.servers for view in self._views.values()),
            has_stale_servers=is_busy and await self._has_stale_servers(),
        )

    def _is_busy(self) -> bool:
        is_busy = False
        for index, view in self._views.items():
            own = self._gates[index].questions
            # Less than before: another PgBouncer has taken the place of the one that was counted.
            is_busy |= view.transactions - own > self._transactions.get(index, view.transactions - own)
            self._transactions[index] = view.transactions - own
        return is_busy

    async def _has_stale_servers(self) -> bool:
        current = await self._probe.addresses()
        if not current:
            return False
        connected = await asyncio.gather(*(gate.server_addresses() for gate in self._gates.values()))
        return bool(set().union(*connected) - current)

    async def _act(self, decision: Decision) -> None:
        actions = decision.actions
        if Action.PAUSE in actions:
            await asyncio.gather(*(gate.open() for gate in self._gates.values()))
            self._pause()
        if Action.RESUME in actions:
            if self._before_return:
                await self._before_return()
            answers = await asyncio.gather(
                *(gate.hand_over(reconnect=Action.RECONNECT in actions) for gate in self._gates.values())
            )
            self._seen.pool = worst(answers)
        elif Action.RECONNECT in actions:
            self._order("RECONNECT")
        if Action.LET_GO in actions:
            self._order("RESUME")
        questions: list[Coroutine[Any, Any, None]] = []
        if Action.PROBE in actions:
            questions.append(self._ask_database())
        if Action.ASK_POOL in actions:
            questions.append(self._ask_pools())
        await self._unless_paused(questions)

    async def _unless_paused(self, questions: list[Coroutine[Any, Any, None]]) -> None:
        """Wait for the answers; give up when an alarm pauses the pool meanwhile: our question would wait, too."""
        asking = asyncio.gather(*questions)
        paused = asyncio.create_task(self._paused_at_once.wait())
        await asyncio.wait((asking, paused), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (asking, paused):
            waiting.cancel()
        await asyncio.gather(asking, paused, return_exceptions=True)

    def _pause(self) -> None:
        for gate in self._gates.values():
            gate.pause()

    def _order(self, command: str) -> None:
        for gate in self._gates.values():
            gate.order(command)

    async def _ask_database(self) -> None:
        self._seen.probe, self._seen.words = await self._probe.ask()

    async def _ask_pools(self) -> None:
        # A pool without a server connection would open one: nobody wants that of a question about those that are open.
        is_any = self._state.phase is Phase.OPEN
        asked = [
            self._gates[index].ask(pool for pool in view.pools if is_any or logged_in(pool))
            for index, view in self._views.items()
        ]
        self._seen.pool = worst(await asyncio.gather(*asked))

    def _tell(self, before: Phase, seen: _Seen, reading: Reading) -> None:
        phase = self._state.phase
        if phase in HEALTH_OF_PHASE:
            self._health.database = HEALTH_OF_PHASE[phase]
        elif phase is Phase.SERVING and (
            before is not phase or self._state.is_good(seen.pool) or self._state.is_good(seen.probe)
        ):
            self._health.database = "up"
        if before is phase:
            return
        fields = {"fields": {"clients_waiting": reading.clients_waiting, "server_connections": reading.servers}}
        if phase is Phase.AWAY and before is not Phase.RETURNING:
            self._away_since = reading.now
            logger.warning("the database is away: new work waits until it is back", extra=fields)
        elif phase is Phase.OPEN:
            logger.error("the database is there but does not let the pool in: clients are told why", extra=fields)
        elif phase is Phase.SERVING and before is not Phase.DOUBTED:
            away_seconds = round(reading.now - self._away_since, 3)
            logger.info("the database is back", extra={"fields": {**fields["fields"], "away_seconds": away_seconds}})


def alarm_of(event: Event) -> Alarm:
    """Return how much an event of PgBouncer's log says about the database as a whole."""
    match event:
        case ServerUnreachable(reason=reason):
            return Alarm.AWAY if reason.startswith(REFUSED_CONNECTION) else Alarm.DOUBT
        case ServerLoginFailed(reason=reason):
            return Alarm.AWAY if AWAY_WORDS.search(reason) else Alarm.DOUBT
        case ServerConnectionLost():
            return Alarm.DOUBT
        case _:
            return Alarm.NONE
