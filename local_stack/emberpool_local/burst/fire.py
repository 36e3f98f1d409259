"""Fires one burst at a fleet of execution environments and measures it.

Owns the shape of the burst: all environments are started and initialised first, then each is given an invocation at
the same moment and the next one as soon as it has answered (a closed loop), until all invocations are done. Which
ways are compared is for others; what the figures mean stands in `results`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emberpool_local.burst.failures import failure_cause
from emberpool_local.burst.results import WayResult
from emberpool_local.burst.sampler import ConnectionSampler, LoginCounter
from emberpool_local.errors import EventInvalid, LocalStackError
from emberpool_local.lambda_runtime import Fleet, Outcome

# A slow machine shall show slow invocations, not invocations that timed out.
DEFAULT_TIMEOUT_SECONDS = 60.0


class BurstInvalid(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """A burst of this shape cannot be fired."""


@dataclass(frozen=True)
class Burst:
    """What is fired, the same over every way; invocation n gets event n, from the start again when they run out.

    Raises BurstInvalid when there is nothing to fire, EventInvalid when an event is not JSON.
    """

    environments: int
    invocations: int
    events: Sequence[bytes]
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        for name, value in (("environments", self.environments), ("invocations", self.invocations)):
            if value < 1:
                raise BurstInvalid(f"{name} must be at least 1, got {value}", f"give a higher --{name}")
        if self.invocations < self.environments:
            raise BurstInvalid(
                f"{self.invocations} invocations cannot keep {self.environments} environments busy",
                "give at least as many --invocations as --environments",
            )
        if not self.events:
            raise BurstInvalid("there is no event to send", "give at least one event")
        for event in self.events:
            check_event(event)


@dataclass(frozen=True)
class Way:
    """One way to connect: which handler runs, and with which environment variables (they hold passwords)."""

    name: str
    title: str
    how: str
    handler: str
    code_folder: Path
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class WatchedDatabase:
    """The database whose server connections are counted; its log must be a jsonlog with log_connections = on."""

    superuser_conninfo: str = field(repr=False)
    log_path: Path
    max_connections: int


@dataclass(frozen=True)
class BurstProgress:
    """How far a burst is: environments started while `is_starting`, after that invocations done."""

    title: str
    is_starting: bool
    done: int
    total: int
    failures: int = 0


ShowProgress = Callable[[BurstProgress], None]


def check_event(event: bytes) -> None:
    """Raise EventInvalid unless `event` is JSON, as Lambda demands it."""
    try:
        json.loads(event)
    except ValueError as error:
        raise EventInvalid(
            f"the event is not JSON: {error}", "mend it; strings and names need double quotes in JSON"
        ) from error


def run_burst(burst: Burst, way: Way, database: WatchedDatabase, progress: ShowProgress | None = None) -> WayResult:
    """Fire the burst over one way and return what was measured; blocks until every environment has ended.

    Raises HandlerInvalid when the handler cannot be loaded, PostgresUnavailable when the database goes away.
    """
    show = progress or _silent
    logins = LoginCounter(database.log_path, database.superuser_conninfo)
    with ConnectionSampler(database.superuser_conninfo) as sampler:
        record, connections_opened = asyncio.run(_fire(burst, way, sampler, logins, show))
    samples = sampler.samples
    return WayResult(
        name=way.name,
        title=way.title,
        how=way.how,
        handler=way.handler,
        environments=burst.environments,
        invocations=burst.invocations,
        succeeded=len(record.latencies_ms),
        failures=dict(record.failures.most_common()),
        latencies_ms=[round(latency, 3) for latency in record.latencies_ms],
        wall_seconds=round(record.wall_seconds, 3),
        init_p50_ms=round(statistics.median(record.init_ms), 1) if record.init_ms else None,
        samples=samples,
        most_server_connections=max((sample.server_connections for sample in samples), default=0),
        connections_opened=connections_opened,
        max_connections=database.max_connections,
    )


@dataclass
class _Record:
    init_ms: list[float]
    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    wall_seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.status == "succeeded":
            self.latencies_ms.append(outcome.duration_ms)
        else:
            self.failures[failure_cause(outcome.status, outcome.error_type, outcome.error_message)] += 1

    @property
    def done(self) -> int:
        return len(self.latencies_ms) + self.failures.total()


async def _fire(
    burst: Burst, way: Way, sampler: ConnectionSampler, logins: LoginCounter, show: ShowProgress
) -> tuple[_Record, int]:
    async with Fleet(
        handler=way.handler,
        code_folder=way.code_folder,
        environment=way.environment,
        timeout_seconds=burst.timeout_seconds,
        max_environments=burst.environments,
    ) as fleet:
        show(BurstProgress(way.title, True, 0, burst.environments))
        await fleet.scale_out(
            burst.environments,
            progress=lambda done, total: show(BurstProgress(way.title, True, done, total)),
        )
        record = _Record([e.init_ms for e in fleet.environments if e.init_ms is not None])
        numbers = iter(range(burst.invocations))
        sampler.start_clock()
        started = time.monotonic()
        await asyncio.gather(
            *(_keep_busy(fleet, burst, numbers, record, way.title, show) for _ in range(burst.environments))
        )
        record.wall_seconds = time.monotonic() - started
        sampler.stop()
        # Before the environments end, as their end is no part of the burst.
        return record, await asyncio.to_thread(logins.count)


async def _keep_busy(
    fleet: Fleet, burst: Burst, numbers: Iterator[int], record: _Record, title: str, show: ShowProgress
) -> None:
    for number in numbers:
        record.add(await fleet.invoke(burst.events[number % len(burst.events)]))
        show(BurstProgress(title, False, record.done, burst.invocations, record.failures.total()))


def _silent(progress: BurstProgress) -> None:
    """Show nothing."""
