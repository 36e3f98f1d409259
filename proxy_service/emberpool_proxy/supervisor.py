"""The first process of the container: keeps the agent and its PgBouncers running, and ends them in order.

Owns processes, ports and limits; imports little and knows no secret, so that it has little to fail by. What PgBouncer
is told and when it drains is the agent's. A crash of the agent leaves PgBouncer serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from emberpool_proxy.addresses import check_is_free, listening
from emberpool_proxy.backoff import CrashLog
from emberpool_proxy.control import (
    BEAT_SECONDS,
    Beat,
    Channel,
    DropConnection,
    EngineAnswers,
    EnginesAre,
    EngineState,
    HoldConnection,
    KillEngine,
    LogLine,
    StartEngines,
)
from emberpool_proxy.errors import AgentRefused, AgentUnusable, PgbouncerUnusable, PortTaken
from emberpool_proxy.first_to_end import first_to_end
from emberpool_proxy.log import PgbouncerLog, logger
from emberpool_proxy.pgbouncer.process import PgbouncerProcess, find_program
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings, variable

SAID_WHY = (1, 2)  # the agent's exit codes for what it has logged: starting it again would not mend a wrong setting
SILENT_AGENT_SECONDS = 10.0  # it beats each second; one that hangs does not watch, drain or answer health checks
DATA_ENDPOINT_PAUSE_SECONDS = 30.0  # for one that keeps crashing
STOP_GRACE_SECONDS = 1.0  # the agent's own bound is stop_seconds; ours is for an agent that failed at it
LAST_WORDS_SECONDS = 0.5  # of an agent that has ended: what it sent is here already
SPARE_FILE_DESCRIPTORS = 100  # listening sockets, the console, logs and the agent's own


class Supervisor:
    """Runs the agent and `settings.pgbouncer_processes` PgBouncers until `stop` is set and all of them drained."""

    def __init__(self, settings: ProxySettings, stop: asyncio.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._engines: dict[int, PgbouncerProcess] = {}
        self._crashes = {index: CrashLog() for index in range(settings.pgbouncer_processes)}
        self._agent_crashes = CrashLog()
        self._agent: asyncio.subprocess.Process | None = None
        self._data_endpoint: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._last_beat = 0.0
        self._answered: set[int] = set()  # process ids whose console answered
        self._held_connection: int | None = None  # a duplicate of the socket that the agent's locks live on
        self._ended_child = 0  # a process id that nobody had collected at the last beat
        self._start = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises PortTaken, RunFolderUnusable, PgbouncerUnusable when PgBouncer does not start or keeps ending, and
        AgentUnusable or AgentRefused when the agent does.
        """
        settings = self._settings
        program = await find_program(settings)
        _check_port(settings, "client_port", "clients")
        if settings.data_port:
            _check_port(settings, "data_port", "the data endpoint")
        _allow_file_descriptors(settings)
        folder = RunFolder.prepare(settings.run_path, settings.run_as_user)
        if folder.owner:
            program = folder.copy_program(program)
        with _listen_for_health(settings) as health_socket:
            try:
                await first_to_end(
                    self._keep_agent(health_socket),
                    self._keep_engines(program),
                    self._keep_data_endpoint(),
                    self._tell_agent(),
                    self._bound_the_stop(),
                )
            finally:
                await self._end_all()
                self._hold_connection(None)  # after PgBouncer: its server connections rely on the locks

    # --- the agent

    async def _keep_agent(self, health_socket: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._channel, theirs = Channel.pair()
            self._last_beat = loop.time()
            self._agent = await _start_agent(theirs, health_socket)
            theirs.close()
            listening = asyncio.create_task(self._listen(self._channel))
            exit_code = await self._agent.wait()
            await _hear_out(listening)
            self._channel.close()
            if not self._start.is_set() and exit_code in SAID_WHY:
                raise AgentRefused(exit_code)
            if self._stop.is_set() and not self._engines:
                return
            logger.error("the agent ended by itself: starting it again", extra={"fields": {"exit_code": exit_code}})
            pause = self._agent_crashes.add()
            if pause is None:
                await self._end_engines_gently()
                raise AgentUnusable(
                    f"the agent ended {self._agent_crashes} (last exit code {exit_code}); giving up, so that this "
                    "task is replaced"
                )
            await asyncio.sleep(pause)

    async def _listen(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        async for message in channel.messages():
            self._last_beat = loop.time()
            match message:
                case StartEngines():
                    self._start.set()
                case EngineAnswers(pid=pid):
                    self._answered.add(pid)
                case KillEngine(index=index, pid=pid):
                    engine = self._engines.get(index)
                    if engine and engine.pid == pid:  # not the one that took its place meanwhile
                        engine.kill()
                case HoldConnection(descriptor=descriptor):
                    self._hold_connection(descriptor)
                case DropConnection():
                    self._hold_connection(None)
                case Beat():
                    pass
                case _:
                    logger.error("the agent sent what only the supervisor says: %s", type(message).__name__)

    def _hold_connection(self, descriptor: int | None) -> None:
        """Keep this one and close the one before, whose session ends if the agent has closed it, too."""
        before, self._held_connection = self._held_connection, descriptor
        if before is not None:
            os.close(before)

    async def _tell_agent(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._say_what_runs()
            self._collect_orphan()
            if loop.time() - self._last_beat > SILENT_AGENT_SECONDS and self._agent:
                logger.error("the agent hangs: ending it", extra={"fields": {"pid": self._agent.pid}})
                self._last_beat = loop.time()
                _kill(self._agent)
            if self._stop.is_set():
                await asyncio.sleep(BEAT_SECONDS)
            else:
                await self._sleep_until_stopped(BEAT_SECONDS)  # a drain begins at once

    def _collect_orphan(self) -> None:
        """Collect what a killed agent left behind: a container's first process inherits it."""
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            process_id = found.si_pid if found else 0
            # asyncio collects our own children at once: what is still there a beat later is nobody's.
            if process_id and process_id == self._ended_child:
                os.waitpid(process_id, 0)
            self._ended_child = process_id

    def _say_what_runs(self) -> None:
        if self._channel is None:
            return
        states = tuple(
            EngineState(index, self._engines[index].pid if index in self._engines else 0, crashes.total)
            for index, crashes in self._crashes.items()
        )
        self._channel.send(EnginesAre(states, self._start.is_set(), self._stop.is_set(), self._agent_crashes.total))

    # --- PgBouncer

    async def _keep_engines(self, program: Path) -> None:
        await self._start.wait()
        engines = [asyncio.create_task(self._keep_engine(index, program)) for index in self._crashes]
        try:
            # One that keeps crashing ends the task of all: another task does better.
            await asyncio.gather(*engines)
        finally:
            for engine in engines:
                engine.cancel()
        logger.info("drained")

    async def _keep_engine(self, index: int, program: Path) -> None:
        folder = RunFolder.existing(self._settings.engine_path(index), self._settings.run_as_user)
        log = PgbouncerLog(index if self._settings.pgbouncer_processes > 1 else None)
        while not self._stop.is_set():
            engine = await PgbouncerProcess.start(
                program, folder, log, lambda line: self._channel and self._channel.send(LogLine(index, line))
            )
            self._engines[index] = engine
            self._say_what_runs()
            exit_code = await engine.wait()
            del self._engines[index]
            self._say_what_runs()
            if self._stop.is_set():
                return
            if engine.pid not in self._answered and not self._crashes[index].total:
                raise PgbouncerUnusable(f"PgBouncer ended at start with exit code {exit_code}; {engine.last_words()}")
            pause = self._crashes[index].add()
            logger.error(
                "pgbouncer ended by itself",
                extra={"fields": {"process": index, "exit_code": exit_code, "crashes": self._crashes[index].total}},
            )
            if pause is None:
                raise PgbouncerUnusable(
                    f"PgBouncer ended {self._crashes[index]} (last exit code {exit_code}); giving up, so that this "
                    "task is replaced"
                )
            await self._sleep_until_stopped(pause)

    # --- the data endpoint

    async def _keep_data_endpoint(self) -> None:
        """Keep it running: without it the pool's other clients are served as ever, so it ends nothing."""
        await self._start.wait()
        crashes = CrashLog()
        while self._settings.data_port and not self._stop.is_set():
            process = self._data_endpoint = await _start_part("data-endpoint")
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if self._stop.is_set():
                if process.returncode is None:
                    process.terminate()  # it lets its calls and transactions end: the pool drains meanwhile
                break
            pause = crashes.add()
            logger.error(
                "the data endpoint ended by itself: starting it again",
                extra={"fields": {"exit_code": process.returncode, "crashes": crashes.total}},
            )
            await self._sleep_until_stopped(DATA_ENDPOINT_PAUSE_SECONDS if pause is None else pause)
        await asyncio.Event().wait()  # others end the task

    # --- the end

    async def _bound_the_stop(self) -> None:
        await self._stop.wait()
        logger.info("draining", extra={"fields": {"stop_seconds": self._settings.stop_seconds}})
        if not self._start.is_set():
            return
        await asyncio.sleep(self._settings.stop_seconds + STOP_GRACE_SECONDS)
        logger.error("the drain did not end within stop_seconds: ending what is left")

    async def _sleep_until_stopped(self, at_most_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_seconds):
                await self._stop.wait()

    async def _end_engines_gently(self) -> None:
        # SIGTERM waits for clients to leave by themselves, and they may stay: bounded.
        for engine in self._engines.values():
            engine.resume()  # what the agent paused, nobody else would
            engine.terminate()
        ends = [asyncio.create_task(engine.wait()) for engine in self._engines.values()]
        if ends:
            await asyncio.wait(ends, timeout=self._settings.stop_seconds)

    async def _end_all(self) -> None:
        for engine in list(self._engines.values()):
            engine.kill()
            await engine.wait()
        await asyncio.gather(*(_end(process) for process in (self._data_endpoint, self._agent) if process))


async def _start_agent(channel: socket.socket, health: socket.socket) -> asyncio.subprocess.Process:
    control, listening = channel.fileno(), health.fileno()
    return await _start_part("agent", f"--control={control}", f"--health={listening}", pass_fds=(control, listening))


async def _start_part(command: str, *options: str, pass_fds: tuple[int, ...] = ()) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        # It must not outlive us: nobody would end it.
        *("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "emberpool_proxy", command),
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's to handle
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            _kill(process)
            await process.wait()


async def _hear_out(listening: asyncio.Task[None]) -> None:
    """Let what an agent sent before it ended be read: it ends with the end of the stream."""
    await asyncio.wait({listening}, timeout=LAST_WORDS_SECONDS)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)


def _listen_for_health(settings: ProxySettings) -> socket.socket:
    # Held here: while the agent starts again, health checks wait in the queue instead of being refused.
    try:
        return listening(settings.listen_host, settings.health_port)
    except OSError as error:
        raise PortTaken(
            f"cannot listen on {settings.listen_host}:{settings.health_port} for health checks: {error.strerror}; "
            f"end the program that uses it or set {variable('health_port')}"
        ) from error


def _check_port(settings: ProxySettings, field: str, what: str) -> None:
    # PgBouncer says only that it could not listen anywhere.
    port = getattr(settings, field)
    try:
        check_is_free(settings.listen_host, port)
    except OSError as error:
        raise PortTaken(
            f"cannot listen on {settings.listen_host}:{port} for {what}: {error.strerror}; "
            f"end the program that uses it or set {variable(field)}"
        ) from error


def _allow_file_descriptors(settings: ProxySettings) -> None:
    # PgBouncer inherits the limit and refuses clients above it; the usual soft limit of 1,024 is far too low.
    needed = settings.max_client_connections + settings.max_server_connections + SPARE_FILE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            logger.warning(
                "the limit of open files is too low for max_client_connections",
                extra={"fields": {"limit": soft, "needed": needed}},
            )
