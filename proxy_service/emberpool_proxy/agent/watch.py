"""Looks at every PgBouncer each tick: does it answer, who is connected, who waits."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from emberpool_proxy.agent.engines import ANSWER_SECONDS, Engine, Engines
from emberpool_proxy.agent.process_work import processor_seconds
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.readings import Reading, read

SILENCES_BEFORE_KILL = 3  # a PgBouncer that hangs is worse than one that starts again
# Thousands of logins at once, each milliseconds of its one thread, keep PgBouncer from its console for long, most on
# half a vCPU. Ended then it would lose all of them, and they would come again. After a minute PgBouncer itself closes
# who has not logged in: who still works without an answer is in a loop that does not end.
BUSY_SILENCES_BEFORE_KILL = 30
LEAST_WORK_SECONDS = 0.05  # of a processor, in a look of ANSWER_SECONDS


async def watch_engines(settings: ProxySettings, engines: Engines, health: Health) -> None:
    """Keep `health` true until cancelled; have a PgBouncer that hangs replaced."""
    while True:
        engines.news.clear()  # before the look: what becomes ready during it is seen by the next one
        readings = await asyncio.gather(*(_look(engines, engine) for engine in engines.all))
        health.is_answering = engines.are_answering
        health.is_working = engines.are_working
        health.restarts = engines.restarts
        health.take(reading for reading in readings if reading)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.agent_tick_seconds):
                await engines.news.wait()


async def _look(engines: Engines, engine: Engine) -> Reading | None:
    if engine.console is None:
        return None
    pid, used_before = engine.pid, processor_seconds(engine.pid)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reading = await read(engine.index, engine.console)
    except (psycopg.Error, TimeoutError):
        if engine.pid != pid:
            return None  # it was replaced meanwhile
        engine.silences += 1
        has_worked = processor_seconds(pid) - used_before >= LEAST_WORK_SECONDS
        engine.idle_silences = 0 if has_worked else engine.idle_silences + 1
        if engine.idle_silences >= SILENCES_BEFORE_KILL or engine.silences >= BUSY_SILENCES_BEFORE_KILL:
            logger.error("pgbouncer does not answer its console: ending it", extra={"fields": {"pid": pid}})
            engines.kill(engine)
        return None
    engine.silences = engine.idle_silences = 0
    return reading
