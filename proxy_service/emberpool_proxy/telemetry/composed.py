"""All that tells the world how the pool does, composed: what the agent counts, /metrics, EMF and /status."""

from __future__ import annotations

import asyncio
import socket

from emberpool_proxy.health import Health
from emberpool_proxy.metrics import Counts
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.emf import EmfLog
from emberpool_proxy.telemetry.prometheus import PrometheusPage
from emberpool_proxy.telemetry.samples import Samples
from emberpool_proxy.telemetry.status import Status


class Telemetry:
    """Reads `health`; the agent's parts write `counts` and add themselves to `status`."""

    def __init__(self, settings: ProxySettings, health: Health) -> None:
        self.counts = Counts()
        self.status = Status(settings, health)
        samples = Samples(settings, health, self.counts)
        self.page = PrometheusPage(samples.current)
        self._emf = (
            EmfLog(samples.current, settings.metrics_namespace, settings.metrics_service, socket.gethostname())
            if settings.metrics_emf == "on"
            else None
        )

    async def run(self) -> None:
        """Write the minute's metrics until cancelled; without EMF there is nothing to do until then."""
        if self._emf:
            await self._emf.run()
        await asyncio.Event().wait()
