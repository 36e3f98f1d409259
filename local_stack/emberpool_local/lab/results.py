"""What a run of the failure lab found: what is written as JSON, drawn on the page, and judged.

All moments are seconds since the run's first invocation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emberpool_local.burst.results import Machine

BUCKET_SECONDS = 0.1


@dataclass(frozen=True)
class FaultRecord:
    """One fault as it happened; `may_fail_until` is the end of the time in which it may hit an invocation."""

    name: str
    title: str
    promise: str
    subject: str  # the task, the database, the functions
    begun: float
    ended: float
    may_fail_until: float | None  # None: no invocation may fail by it
    most_failures: int | None  # None: as many as were under way
    failed: int
    unknown: int
    recovered_after_seconds: float | None  # until the throughput was back; None: not before the next fault


@dataclass(frozen=True)
class Bucket:
    """What ended within BUCKET_SECONDS from `at` on."""

    at: float
    succeeded: int
    failed: int
    unknown: int  # failed, and reported as a commit whose outcome is not known
    slowest_ms: float


@dataclass(frozen=True)
class Connections:
    """One look into the database; counts by task."""

    at: float
    pool: Mapping[str, int]
    agents: Mapping[str, int]
    slots: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """One oracle's: `sentence` says what holds, `details` what broke it (a few lines, with moments)."""

    oracle: str
    sentence: str
    holds: bool
    details: Sequence[str] = ()


@dataclass(frozen=True)
class LabResult:
    """One run."""

    seed: int
    command: str  # that runs the same again
    seconds: float
    measured_at: str  # ISO 8601, UTC
    machine: Machine
    network: str  # "namespaces" or "loopback"
    environments: int
    tasks: int
    budget: int
    slots: int
    floor: int
    invocations: int
    succeeded: int
    failed: int
    unknown: int
    faults: Sequence[FaultRecord]
    buckets: Sequence[Bucket]
    connections: Sequence[Connections]
    notes: Sequence[tuple[float, str]]
    verdicts: Sequence[Verdict]

    @property
    def holds(self) -> bool:
        """Whether every oracle's sentence is true."""
        return all(verdict.holds for verdict in self.verdicts)
