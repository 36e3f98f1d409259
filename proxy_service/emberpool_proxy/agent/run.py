"""The agent as a process: hears the supervisor, starts or attaches to the pool, drains it when it is told."""

from __future__ import annotations

import asyncio
import socket

from emberpool_proxy.agent.engines import Engines
from emberpool_proxy.agent.pool import Pool
from emberpool_proxy.agent.state_file import AgentState
from emberpool_proxy.control import (
    BEAT_SECONDS,
    Beat,
    Channel,
    DropConnection,
    EnginesAre,
    HoldConnection,
    LogLine,
    StartEngines,
)
from emberpool_proxy.first_to_end import first_to_end
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings


class Agent:
    """The agent of one task. `channel` leads to the supervisor; `health_socket` listens already."""

    def __init__(self, settings: ProxySettings, channel: Channel, health_socket: socket.socket) -> None:
        self._settings = settings
        self._channel = channel
        self._health_socket = health_socket
        self._health = Health()
        self._engines: Engines | None = None
        self._last_word: EnginesAre | None = None
        self._heard = asyncio.Event()
        self._draining = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Serve until the pool has drained. Raises ProxyError when it cannot start."""
        await first_to_end(self._listen(), self._beat(), self._serve())

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            match message:
                case EnginesAre():
                    self._last_word = message
                    self._heard.set()
                    self._take_over(message)
                case LogLine(index=index, line=line) if self._engines:
                    self._engines.read_log_line(index, line)
                case _:
                    pass
        logger.error("the supervisor is gone")

    def _take_over(self, word: EnginesAre) -> None:
        if self._engines is None:
            return
        self._health.agent_restarts = word.agent_restarts
        self._engines.is_draining = word.is_draining
        self._engines.update(word.engines)
        if word.is_draining:
            self._draining.set()
        if word.is_started and word.is_draining and self._engines.have_ended:
            self._ended.set()

    async def _beat(self) -> None:
        while True:
            self._channel.send(Beat())
            await asyncio.sleep(BEAT_SECONDS)

    async def _serve(self) -> None:
        await self._heard.wait()
        first = self._last_word
        assert first is not None  # noqa: S101 (heard)
        folder = RunFolder.existing(self._settings.run_path, self._settings.run_as_user)
        # What an agent of an earlier run left behind is of no use: its PgBouncers have ended.
        earlier = AgentState.read(folder.path) if first.is_started else None
        state = earlier or AgentState.new()
        engines = Engines(self._settings, state.agent_password, self._channel)
        pool = Pool(self._settings, engines, self._health, state, folder, self._hold)
        try:
            async with pool.serve(self._health_socket):
                if earlier:
                    logger.info("attaching to what went on", extra={"fields": {"processes": len(engines.all)}})
                else:
                    await pool.prepare()
                    self._channel.send(StartEngines())
                self._engines = engines
                self._take_over(self._last_word or first)
                await first_to_end(pool.keep(), self._drain(pool))
        finally:
            await pool.close()

    def _hold(self, descriptor: int | None) -> None:
        if descriptor is None:
            self._channel.send(DropConnection())
        else:
            self._channel.send(HoldConnection(), descriptor)

    async def _drain(self, pool: Pool) -> None:
        await self._draining.wait()
        await pool.drain()
        await self._ended.wait()
