"""The PgBouncer processes as the agent sees them: their consoles, their folders and what they log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from emberpool_proxy.agent.pool_connection import PoolConnection
from emberpool_proxy.control import Channel, EngineAnswers, EngineState, KillEngine
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.log_lines import Event, event_of
from emberpool_proxy.settings import ProxySettings

ANSWER_SECONDS = 3.0
PROBE_SECONDS = 0.02
START_SECONDS = 10.0  # longest wait for the console of a process that has just started


@dataclass
class Engine:
    """One PgBouncer process. `console` is None until it answers, and again when it has ended."""

    index: int
    folder: Path
    pid: int = 0
    restarts: int = 0
    console: AdminConsole | None = None
    silences: int = 0  # ticks in a row without an answer
    idle_silences: int = 0  # of those, the last ones in a row in which it did not work either
    is_prepared: bool = False  # everybody who asked for it has seen it before its first client


class Engines:
    """All PgBouncer processes of this task. Attaches to each as the supervisor starts it."""

    def __init__(self, settings: ProxySettings, agent_password: str, channel: Channel) -> None:
        self._settings = settings
        self._agent_password = agent_password
        self._channel = channel
        self._attaching: dict[int, asyncio.Task[None]] = {}
        self._on_log_event: list[Callable[[int, Event], None]] = []
        self._on_attached: list[Callable[[Engine], Awaitable[None]]] = []
        self.is_draining = False
        self.news = asyncio.Event()  # a process has become ready: nobody should wait for the next tick to learn it
        self.all = [Engine(index, settings.engine_path(index)) for index in range(settings.pgbouncer_processes)]

    @property
    def are_answering(self) -> bool:
        """Whether every process has a console that answered last."""
        return all(engine.console is not None and engine.is_prepared and not engine.silences for engine in self.all)

    @property
    def are_working(self) -> bool:
        """Whether every process answered last, or has too much work to answer."""
        return all(
            engine.console is not None and engine.is_prepared and not engine.idle_silences for engine in self.all
        )

    @property
    def have_ended(self) -> bool:
        """Whether no process runs."""
        return not any(engine.pid for engine in self.all)

    @property
    def restarts(self) -> int:
        """How often a PgBouncer was started again since this task began."""
        return sum(engine.restarts for engine in self.all)

    def on_log_event(self, callback: Callable[[int, Event], None]) -> None:
        """Call `callback(process index, event)` for each event that a log line tells; it must not block."""
        self._on_log_event.append(callback)

    def on_attached(self, callback: Callable[[Engine], Awaitable[None]]) -> None:
        """Await `callback(engine)` each time that a process answers for the first time, before it counts as ready."""
        self._on_attached.append(callback)

    def read_log_line(self, index: int, line: str) -> None:
        """Tell everybody who asked what a line of PgBouncer `index` means."""
        if event := event_of(line):
            for callback in self._on_log_event:
                callback(index, event)

    def update(self, states: tuple[EngineState, ...]) -> None:
        """Take over what the supervisor says; attach to what has started."""
        for state in states:
            engine = self.all[state.index]
            engine.restarts = state.restarts
            if state.pid == engine.pid:
                continue
            engine.pid, engine.console, engine.is_prepared = state.pid, None, False
            engine.silences = engine.idle_silences = 0
            if running := self._attaching.pop(engine.index, None):
                running.cancel()
            if state.pid:
                self._attaching[engine.index] = asyncio.create_task(self._attach(engine, state.pid))

    async def connect(self, engine: Engine) -> AdminConsole:
        """Open one more console of `engine`, for a command that may block. Raises psycopg.OperationalError."""
        return await AdminConsole.open(str(engine.folder), self._settings.client_port, self._agent_password)

    async def connect_to_pool(self, engine: Engine, database: str) -> PoolConnection:
        """Log in as a client of one of the pools of `engine`. Raises psycopg.OperationalError."""
        return await PoolConnection.open(engine.folder, self._settings.client_port, self._agent_password, database)

    async def for_each(
        self, act: Callable[[AdminConsole], Awaitable[object]], within_seconds: float = ANSWER_SECONDS
    ) -> bool:
        """Do `act` on every console at once; return whether all did it.

        What fails or takes longer is logged, and the others still do it.
        """
        consoles = [(engine, engine.console) for engine in self.all if engine.console]
        results = await asyncio.gather(
            *(asyncio.wait_for(_done(act(console)), within_seconds) for _, console in consoles), return_exceptions=True
        )
        for (engine, _), result in zip(consoles, results, strict=True):
            if isinstance(result, psycopg.Error | TimeoutError):
                logger.warning(
                    "pgbouncer's console failed: %s",
                    str(result) or "no answer",
                    extra={"fields": {"process": engine.index}},
                )
            elif isinstance(result, BaseException):
                raise result
        return len(consoles) == len(self.all) and not any(isinstance(result, BaseException) for result in results)

    def kill(self, engine: Engine) -> None:
        """Have the supervisor end `engine` at once and start it again."""
        self._channel.send(KillEngine(engine.index, engine.pid))

    async def close(self) -> None:
        """Close every console; PgBouncer goes on."""
        for task in self._attaching.values():
            task.cancel()
        await asyncio.gather(*self._attaching.values(), return_exceptions=True)
        for engine in self.all:
            if engine.console:
                await engine.console.close()

    async def _attach(self, engine: Engine, pid: int) -> None:
        console = await self._answering_console(engine)
        if console is None and self.is_draining:
            return  # it has taken its shutdown already and lets the last transactions end; stop_seconds bounds that
        if console is None:
            logger.error("pgbouncer does not answer its console: ending it", extra={"fields": {"pid": pid}})
            self.kill(engine)
            return
        engine.console = console
        self._channel.send(EngineAnswers(engine.index, pid))
        logger.info("pgbouncer answers", extra={"fields": {"process": engine.index, "pid": pid}})
        for callback in self._on_attached:
            await callback(engine)
        engine.is_prepared = True
        self.news.set()

    async def _answering_console(self, engine: Engine) -> AdminConsole | None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    try:
                        return await self.connect(engine)
                    except psycopg.OperationalError:
                        await asyncio.sleep(PROBE_SECONDS)
        except TimeoutError:
            return None


async def _done(awaitable: Awaitable[object]) -> None:
    await awaitable
