"""Tells when the PgBouncer that runs lacks a known security fix: in the log once, in /healthz, /status and a metric."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psycopg

from emberpool_proxy.agent.engines import ANSWER_SECONDS, Engine
from emberpool_proxy.health import Health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.installed import InstalledPgbouncer
from emberpool_proxy.settings import ProxySettings


class VersionCheck:
    """Asks each PgBouncer for its version as it is attached to, and gives what it knows to `health`."""

    def __init__(self, settings: ProxySettings, health: Health) -> None:
        found = shutil.which(settings.pgbouncer_path)
        self._program = Path(found).resolve() if found else None
        self._health = health

    async def look(self, engine: Engine) -> None:
        """Ask `engine`; one that does not answer is the watch's to see."""
        if engine.console is None:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await engine.console.show_version()
        except (psycopg.Error, TimeoutError):
            return
        installed = InstalledPgbouncer.of(told, self._program)
        if installed and installed != self._health.pgbouncer and installed.warning:
            logger.warning("%s", installed.warning)
        self._health.pgbouncer = installed
