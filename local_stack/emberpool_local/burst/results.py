"""What a burst showed: one frozen record for each way, one for the whole, and their JSON.

Owns the definitions of the figures. What latency means here: from the moment that an invocation is handed to its
execution environment until that environment's response has arrived, measured outside of it; the start of the
environment (init) is not in it and is given apart. Only invocations that succeeded count for p50, p99 and the
distribution, as a refused connection fails fast and would make the worst way look quick; failures are counted apart,
by error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PERCENTILE_METHOD = "nearest rank: the smallest latency that at least p % of the succeeded invocations do not exceed"


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the percentile of `values` by nearest rank (see PERCENTILE_METHOD), None when there are none.

    Raises ValueError when `percent` is not above 0 and at most 100.
    """
    if not 0 < percent <= 100:  # noqa: PLR2004 (per cent)
        raise ValueError(f"percent must be above 0 and at most 100, got {percent}")
    if not values:
        return None
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@dataclass(frozen=True)
class ConnectionSample:
    """How many server connections PostgreSQL had at `seconds` after the first invocation (negative: during init)."""

    seconds: float
    server_connections: int


@dataclass(frozen=True)
class WayResult:
    """One burst over one way to connect.

    `title` and `how` say to people what `name` says to programs; `handler` is MODULE:FUNCTION. `latencies_ms` holds the
    succeeded invocations in the order of their ends; `failures` counts the others by the text of their error;
    `most_server_connections` is the highest of `samples` (pg_stat_activity); `connections_opened` counts the logins
    that PostgreSQL's log shows between the start of the environments and the end of the burst; `init_p50_ms` is None
    when no environment reported its init.
    """

    name: str
    title: str
    how: str
    handler: str
    environments: int
    invocations: int
    succeeded: int
    failures: Mapping[str, int]
    latencies_ms: Sequence[float]
    wall_seconds: float
    init_p50_ms: float | None
    samples: Sequence[ConnectionSample]
    most_server_connections: int
    connections_opened: int
    max_connections: int

    def __post_init__(self) -> None:
        if self.succeeded + self.failed != self.invocations or len(self.latencies_ms) != self.succeeded:
            raise ValueError(
                f"{self.name}: {self.succeeded} succeeded ({len(self.latencies_ms)} latencies) and "
                f"{self.failed} failed do not add up to {self.invocations} invocations"
            )

    @property
    def failed(self) -> int:
        """Invocations that did not answer: raised, ran out of time, or lost their process."""
        return sum(self.failures.values())

    @property
    def p50_ms(self) -> float | None:
        """Median latency of the succeeded invocations."""
        return percentile(self.latencies_ms, 50)

    @property
    def p99_ms(self) -> float | None:
        """Latency that 99 % of the succeeded invocations do not exceed."""
        return percentile(self.latencies_ms, 99)

    @property
    def succeeded_per_second(self) -> float:
        """Succeeded invocations per second of the burst; a failure is no throughput."""
        return self.succeeded / self.wall_seconds if self.wall_seconds else 0.0


@dataclass(frozen=True)
class Machine:
    """Where it was measured, as strings to show: hardware, system and the versions that take part."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoResult:
    """The same burst over every way, in the order in which they ran.

    `command` is what was typed (or would have been) to get it; `measured_at` is an ISO 8601 time in UTC.
    """

    ways: Sequence[WayResult]
    machine: Machine
    command: str
    measured_at: str
    max_connections: int
    max_server_connections: int | None

    def way(self, name: str) -> WayResult:
        """Return the way with this name; raises KeyError when it did not run."""
        for way in self.ways:
            if way.name == name:
                return way
        raise KeyError(name)


def to_json(result: DemoResult) -> str:
    """Write the result as JSON, the computed figures (failed, p50_ms, p99_ms, rate) included."""
    document = asdict(result)
    for way, record in zip(result.ways, document["ways"], strict=True):
        record |= {
            "failed": way.failed,
            "p50_ms": way.p50_ms,
            "p99_ms": way.p99_ms,
            "succeeded_per_second": way.succeeded_per_second,
        }
    document["percentile_method"] = PERCENTILE_METHOD
    return json.dumps(document, indent=2)


def from_json(text: str) -> DemoResult:
    """Read what to_json wrote; the computed figures are computed anew.

    Raises ValueError, KeyError or TypeError when `text` is something else.
    """
    document: dict[str, Any] = json.loads(text)
    document.pop("percentile_method", None)
    ways = [_way(record) for record in document.pop("ways")]
    return DemoResult(ways=ways, machine=Machine(**document.pop("machine")), **document)


def _way(record: dict[str, Any]) -> WayResult:
    for computed in ("failed", "p50_ms", "p99_ms", "succeeded_per_second"):
        record.pop(computed, None)
    samples = [ConnectionSample(**sample) for sample in record.pop("samples")]
    return WayResult(samples=samples, **record)
