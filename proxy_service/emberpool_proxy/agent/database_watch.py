"""Watches the database for the pool: new work waits while it is away, and goes on as soon as it is back.

What to do is database_state's, how the pool is told is database_gate's, how the database is asked database_probe's.
While nothing is wrong this costs three short console commands each CHECK_SECONDS and, only if clients have run
something since, one query through each pool: no connection of our own to the database, and none when nobody works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
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
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import Event, ServerConnectionLost, ServerLoginFailed, ServerUnreachable
from emberpool_proxy.settings import ProxySettings

# A storm of lost connections is one reason to look, not hundreds; what cannot wait pauses at once.
LEAST_SECONDS_BETWEEN_READINGS = 0.02
REFUSED_CONNECTION = ("connect failed", "server DNS lookup failed")
HEALTH_OF_PHASE: dict[Phase, str] = {Phase.AWAY: "paused", Phase.RETURNING: "paused", Phase.OPEN: "away"}


@dataclass
class _Seen:
    """What was asked since the last reading, and what is needed to tell what has changed."""

    alarm: Alarm = Alarm.NONE
    probe: Answer = Answer.NOT_ASKED
    pool: Answer = Answer.NOT_ASKED
    words: str = ""  # the database's, when it was not well


class DatabaseWatch:
    """Keeps clients waiting while the database is away. `credentials_for_probe` returns (user, password)."""

    def __init__(
        self,
        settings: ProxySettings,
        engines: PoolEngines,
        health: Health,
        credentials_for_probe: Callable[[], tuple[str, str]],
    ) -> None:
        self._engines = engines
        self._health = health
        self._probe = DatabaseProbe(settings, credentials_for_probe)
        self._gates = {engine.index: Gate(engines, engine) for engine in engines.all}
        self._known_pids: dict[int, int] = {}
        self._transactions: dict[int, int] = {}
        self._state = DatabaseState(
            must_be_writable=settings.database_must_be_writable == "yes",
            probe_seconds=settings.database_probe_seconds,
        )
        self._seen = _Seen()
        self._views: dict[int, View] = {}
        self._alarmed = asyncio.Event()
        self._away_since = 0.0

    def on_log_event(self, index: int, event: Event) -> None:
        """Take in what a line of PgBouncer's log means; an unmistakable one pauses the pool within this call."""
        alarm = alarm_of(event)
        if alarm is Alarm.NONE:
            return
        if pauses_at_once(self._state, alarm) and self._seen.alarm is not Alarm.AWAY:
            self._pause()
        self._seen.alarm = max(self._seen.alarm, alarm)
        self._alarmed.set()

    async def run(self) -> None:
        """Watch until cancelled. What is paused then stays so: the next agent's watch looks at it first."""
        try:
            while True:
                decision = await self._look_and_decide()
                await self._act(decision)
                await self._wait(decision.wait_seconds)
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
        reading = await self._read(seen)
        before = self._state.phase
        self._state, decision = step(self._state, reading)
        self._tell(before, seen, reading)
        return decision

    async def _read(self, seen: _Seen) -> Reading:
        looked = await asyncio.gather(*(gate.look() for gate in self._gates.values()))
        self._views = {index: view for index, view in zip(self._gates, looked, strict=True) if view}
        is_busy = self._is_busy()
        is_paused = [view.state != "active" for view in self._views.values() if self._may_be_ours(view)]
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
