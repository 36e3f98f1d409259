"""Keeps one PgBouncer running until it is told to stop, then drains it.

Owns the order of things: render, start, watch, restart after a crash, drain. What PgBouncer is told is config's,
how a process runs is process's.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import socket
import time
from collections import deque
from pathlib import Path

import psycopg

from emberpool_proxy.certificates import self_signed
from emberpool_proxy.errors import PgbouncerUnusable, PortTaken, RunFolderUnusable
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.config import CERTIFICATE_FILE, KEY_FILE, render
from emberpool_proxy.pgbouncer.process import PgbouncerProcess, find_program
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings, variable

WATCH_SECONDS = 1.0
ANSWER_SECONDS = 3.0
SILENCES_BEFORE_KILL = 3  # a PgBouncer that hangs is worse than one that starts again
CRASHES_BEFORE_GIVING_UP = 5
CRASH_WINDOW_SECONDS = 60.0
LONGEST_BACK_OFF_SECONDS = 2.0
DRAIN_PROBE_SECONDS = 0.2
SPARE_FILE_DESCRIPTORS = 100  # listening sockets, the console, logs and the agent's own


class Supervisor:
    """Runs PgBouncer for `settings`, reporting to `health`, until `stop` is set."""

    def __init__(self, settings: ProxySettings, health: Health, stop: asyncio.Event) -> None:
        self._settings = settings
        self._health = health
        self._stop = stop
        self._agent_password = secrets.token_urlsafe(32)
        self._crashes: deque[float] = deque()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises PgbouncerUnusable when PgBouncer does not start or keeps ending, and RunFolderUnusable when its
        files cannot be written.
        """
        program, folder = await self._prepare()
        while not self._stop.is_set():
            process = await PgbouncerProcess.start(program, folder)
            try:
                await self._serve(process)
            finally:
                self._health.is_answering = False
                process.kill()
                exit_code = await process.wait()
            if not self._stop.is_set():
                await self._back_off(exit_code)

    async def _prepare(self) -> tuple[Path, RunFolder]:
        settings = self._settings
        program = await find_program(settings)
        _check_client_port(settings)
        _allow_file_descriptors(settings)
        folder = RunFolder.prepare(settings.run_path, settings.run_as_user)
        if folder.owner:
            program = folder.copy_program(program)
        if settings.client_tls_mode != "disable":
            self._write_certificate(folder)
        for name, content in render(settings, self._agent_password).files.items():
            folder.write(name, content)
        return program, folder

    def _write_certificate(self, folder: RunFolder) -> None:
        settings = self._settings
        if not settings.client_tls_cert_file:
            made = self_signed()
            folder.write(CERTIFICATE_FILE, made.certificate_pem)
            folder.write(KEY_FILE, made.key_pem)
            logger.warning("no client certificate was given: made a self-signed one; clients cannot verify it")
            return
        for name, source in (
            (CERTIFICATE_FILE, settings.client_tls_cert_file),
            (KEY_FILE, settings.client_tls_key_file),
        ):
            try:
                folder.write(name, Path(source).read_bytes())
            except OSError as error:
                raise RunFolderUnusable(f"cannot read {source}: {error.strerror}") from error

    async def _serve(self, process: PgbouncerProcess) -> None:
        console = await process.open_console(self._settings, self._agent_password)
        self._health.is_answering = True
        logger.info("pgbouncer answers", extra={"fields": {"pid": process.pid}})
        ended = asyncio.create_task(process.wait())
        try:
            await self._watch(process, console, ended)
            if self._stop.is_set() and not ended.done():
                await self._drain(console, ended)
        finally:
            await console.close()
            if not ended.done():
                process.kill()
            await ended

    async def _watch(self, process: PgbouncerProcess, console: AdminConsole, ended: asyncio.Task[int]) -> None:
        """Return when PgBouncer ended, hangs, or the proxy is told to stop."""
        stopping = asyncio.create_task(self._stop.wait())
        silences = 0
        try:
            while not (ended.done() or stopping.done()):
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        count = await console.count_clients()
                except (psycopg.Error, TimeoutError):
                    silences += 1
                    self._health.is_answering = False
                else:
                    silences = 0
                    self._health.is_answering = True
                    self._health.client_connections = count.connected
                    self._health.clients_waiting = count.waiting
                if silences >= SILENCES_BEFORE_KILL:
                    logger.error(
                        "pgbouncer does not answer its console: ending it",
                        extra={"fields": {"pid": process.pid}},
                    )
                    process.kill()
                await asyncio.wait((ended, stopping), timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _back_off(self, exit_code: int) -> None:
        now = time.monotonic()
        self._crashes.append(now)
        while now - self._crashes[0] > CRASH_WINDOW_SECONDS:
            self._crashes.popleft()
        self._health.restarts += 1
        crashes = len(self._crashes)
        logger.error("pgbouncer ended by itself", extra={"fields": {"exit_code": exit_code, "crashes": crashes}})
        if crashes >= CRASHES_BEFORE_GIVING_UP:
            raise PgbouncerUnusable(
                f"PgBouncer ended {crashes} times within {CRASH_WINDOW_SECONDS:g} s (last exit code {exit_code}); "
                "giving up, so that this task is replaced"
            )
        # The first restart is at once: clients are waiting for it.
        pause = 0.0 if crashes == 1 else min(0.1 * 2**crashes, LONGEST_BACK_OFF_SECONDS)
        try:
            await asyncio.wait_for(self._stop.wait(), pause)
        except TimeoutError:
            return

    async def _drain(self, console: AdminConsole, ended: asyncio.Task[int]) -> None:
        """Stop without losing a query: no new connections, clients leave, transactions end, then PgBouncer."""
        settings = self._settings
        self._health.is_draining = True
        deadline = time.monotonic() + settings.stop_seconds
        logger.info("draining", extra={"fields": {"drain_seconds": settings.drain_seconds}})
        try:
            left = await self._wait_for_clients_to_leave(console, ended)
            if ended.done():
                return
            logger.info("closing the clients that are left between transactions", extra={"fields": {"clients": left}})
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                await console.shutdown_when_servers_are_free()
                await asyncio.shield(ended)
            logger.info("drained")
        except psycopg.Error:
            # The console goes with PgBouncer: wait for its end rather than trust the order of the two.
            await asyncio.wait((ended,), timeout=max(deadline - time.monotonic(), 0))
        except TimeoutError:
            logger.error(
                "transactions were still running after stop_seconds: ending them",
                extra={"fields": {"stop_seconds": settings.stop_seconds}},
            )

    async def _wait_for_clients_to_leave(self, console: AdminConsole, ended: asyncio.Task[int]) -> int:
        until = time.monotonic() + self._settings.drain_seconds
        while True:
            left = (await console.count_clients()).connected
            if not left or ended.done() or time.monotonic() >= until:
                return left
            await asyncio.sleep(DRAIN_PROBE_SECONDS)


def _check_client_port(settings: ProxySettings) -> None:
    # PgBouncer says only that it could not listen anywhere.
    with socket.socket(socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.listen_host, settings.client_port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {settings.listen_host}:{settings.client_port} for clients: {error.strerror}; "
                f"end the program that uses it or set {variable('client_port')}"
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
