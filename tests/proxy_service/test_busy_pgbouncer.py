"""A PgBouncer that is too busy to answer its console is left alone for long; one that hangs is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_proxy.agent import watch
from emberpool_proxy.agent.engines import Engines
from emberpool_proxy.control import Channel, KillEngine
from emberpool_proxy.health import Health

from .bare_pgbouncer import bare_pgbouncer
from .fleet_rig import until
from .observed import some_settings

LOOK_SECONDS = 0.3
HANGING_LOOKS, BUSY_LOOKS = 3, 6


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks of a fraction of a second, in which a process that works uses a hundredth of it at least."""
    monkeypatch.setattr(watch, "ANSWER_SECONDS", LOOK_SECONDS)
    monkeypatch.setattr(watch, "LEAST_WORK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "SILENCES_BEFORE_KILL", HANGING_LOOKS)
    monkeypatch.setattr(watch, "BUSY_SILENCES_BEFORE_KILL", BUSY_LOOKS)


@contextmanager
def process(program: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", program]) as running:
        try:
            yield running.pid
        finally:
            running.kill()


@asynccontextmanager
async def silent_engines(program: PgbouncerProgram, pid: int) -> AsyncIterator[tuple[Engines, Health, Channel]]:
    """Have a console that does not answer, of a PgBouncer that was stopped; it works as the process `pid` does."""
    ours, theirs = Channel.pair()
    supervisor, health = Channel(theirs), Health()
    with bare_pgbouncer(program, {"nowhere": "host=127.0.0.1 port=1"}) as bare:
        engines = Engines(some_settings(agent_tick_seconds=0.1), "unused", ours)
        (engine,) = engines.all
        engine.pid, engine.console, engine.is_prepared = pid, await bare.console(), True
        os.kill(bare.child.pid, signal.SIGSTOP)
        watching = asyncio.create_task(watch.watch_engines(some_settings(agent_tick_seconds=0.1), engines, health))
        try:
            yield engines, health, supervisor
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            os.kill(bare.child.pid, signal.SIGCONT)
            await engines.close()
            ours.close()
            supervisor.close()


async def looks_until_ended(channel: Channel, engines: Engines) -> int:
    """Return after how many looks the supervisor is told to end it."""
    async with asyncio.timeout(60):
        async for message in channel.messages():
            if isinstance(message, KillEngine):
                return engines.all[0].silences
    raise AssertionError("nobody was told to end it")


async def test_pgbouncer_that_hangs_is_ended_soon(pgbouncer_program: PgbouncerProgram) -> None:
    """What neither answers nor works is unhealthy, and ended after a few looks."""
    with process("import time; time.sleep(300)") as pid:
        async with silent_engines(pgbouncer_program, pid) as (engines, health, channel):
            assert await looks_until_ended(channel, engines) == HANGING_LOOKS
            assert health.reason_not_healthy() == health.reason_not_ready() == "pgbouncer does not answer"


async def test_pgbouncer_that_is_busy_is_left_alone_for_long(pgbouncer_program: PgbouncerProgram) -> None:
    """What works without answering, as in a storm of logins, is healthy but not ready, and ended only much later."""
    with process("while True: pass") as pid:
        async with silent_engines(pgbouncer_program, pid) as (engines, health, channel):
            await until("it was not looked at", lambda: engines.all[0].silences > HANGING_LOOKS)
            assert health.reason_not_healthy() is None
            assert health.reason_not_ready() == "pgbouncer does not answer"
            assert await looks_until_ended(channel, engines) == BUSY_LOOKS
