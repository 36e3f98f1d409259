"""The seconds of a block that are measured: the requests answered in them, how long each took, the servers' CPU."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.proxy.pair import cpu_seconds

SPARE_SECONDS = 60.0  # for the start, and for 256 logins


@dataclass(frozen=True)
class Load:
    """What came back in so many seconds: the requests answered, how long they took, the CPU that each has cost (us)."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Window:
    """Notes what is answered once it is open; it closes after its seconds, or after so many requests."""

    def __init__(self, processes: Mapping[str, int], requests: int = 0) -> None:
        self._processes = processes
        self._most_requests = requests or math.inf
        self._until = math.inf
        self._from = math.inf
        self._cpu: list[Mapping[str, float]] = []
        self._times: list[float] = []
        self.requests_sent = 0
        self.failures: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether clients go on sending."""
        return not self.failures and time.perf_counter() < self._until and self.requests_sent < self._most_requests

    def open(self, lead_in_seconds: float, seconds: float) -> None:
        """Begin to measure after a while, for so long."""
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        self._from = now + lead_in_seconds
        loop.call_later(lead_in_seconds, self._take_cpu)
        if math.isinf(self._most_requests):
            self._until = self._from + seconds
            loop.call_later(lead_in_seconds + seconds, self._take_cpu)

    def sent(self) -> float:
        """Count a request, and return when it was sent."""
        self.requests_sent += 1
        return time.perf_counter()

    def answered(self, sent_at: float) -> bool:
        """Note an answer, and say whether its client goes on."""
        now = time.perf_counter()
        if self._from <= now <= self._until:
            self._times.append(now - sent_at)
        return not self.failures and now < self._until and self.requests_sent < self._most_requests

    def load(self) -> Load:
        """Return what was measured. Exits with the failures, if there were any."""
        if self.failures:
            raise SystemExit(f"{len(self.failures)} requests failed, the first: {self.failures[0]}")
        if not self._times:
            raise SystemExit("nothing was answered in time")
        seconds = min(self._until, time.perf_counter()) - self._from
        if len(self._cpu) == 1:
            self._take_cpu()
        before, after = self._cpu
        times = sorted(self._times)
        return Load(
            len(times),
            seconds,
            times[len(times) // 2] * 1000,
            times[int(len(times) * 0.99)] * 1000,
            {name: (after[name] - before[name]) / len(times) * 1e6 for name in before},
        )

    def _take_cpu(self) -> None:
        self._cpu.append({name: cpu_seconds(pid) for name, pid in self._processes.items()})


def run_measured(
    module: str, plan: Mapping[str, Any], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> Load:
    """Run a module that measures by a plan, in a process of its own. Raises RuntimeError when it failed."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_seconds + SPARE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr.strip()[-500:]}")
    return Load(**json.loads(done.stdout))
