"""A run of the failure lab as it could have been: what the page and the picture are drawn from in tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

from emberpool_local.burst.results import Machine
from emberpool_local.lab.results import BUCKET_SECONDS, Bucket, Connections, FaultRecord, LabResult, Verdict

BUDGET, SLOTS, FLOOR = 60, 36, 2
ORACLES = (
    ("nothing lost", "Every acknowledged commit is in the database."),
    ("nothing twice", "No transfer was applied twice."),
    ("money conserved", "The sum of all balances is what it was."),
    ("unknown is unknown", "Every unknown outcome was reported as unknown."),
    ("budget", "The fleet's server connections never exceeded the budget of 60."),
    ("no orphans", "No query outlived its environment by more than a second."),
    ("alive at the start", "No handler saw a dead connection at its start."),
    ("failures", "No fault failed more invocations than its promise allows."),
)
FAULTS = (
    ("pgbouncer-killed", "PgBouncer is killed", "the invocations in flight fail, the agent restarts it", 2.0, None),
    ("agent-killed", "The agent is killed", "nothing: the pool keeps serving", None, 0),
    ("rolling-deployment", "A rolling deployment", "nothing", None, 0),
    ("task-vanished", "A task vanishes without a FIN", "its environments meet another task", 6.0, None),
    ("failover", "Failover to the standby, with a change of DNS", "invocations wait, none is lost", 4.0, None),
    ("database-password-rotated", "The database's password is rotated", "nothing", None, 0),
    ("clock-jump", "The task's clock jumps", "nothing", None, 0),
    ("cold-start-burst", "Ten times as many environments start at once", "they wait in line", None, 0),
)


def made_up_run(
    *, seconds: float = 60.0, faults: int = len(FAULTS), violated: Sequence[str] = (), seed: int = 7
) -> LabResult:
    """Return a run of so many faults; `violated` are oracles that found something."""
    chance = random.Random(seed)
    records = [_fault(number, seconds, faults, chance) for number in range(faults)]
    buckets = [_bucket(number, records, chance) for number in range(round(seconds / BUCKET_SECONDS))]
    failed, unknown = sum(bucket.failed for bucket in buckets), sum(bucket.unknown for bucket in buckets)
    succeeded = sum(bucket.succeeded for bucket in buckets)
    return LabResult(
        seed=seed,
        command=f"emberpool chaos --seed {seed} --seconds {seconds:g}",
        seconds=seconds,
        measured_at="2026-01-02T03:04:05+00:00",
        machine=Machine("a processor", 2, 3.5, "a system", {"PostgreSQL": "15.18", "PgBouncer": "1.24.1"}),
        network="namespaces",
        environments=40,
        tasks=3,
        budget=BUDGET,
        slots=SLOTS,
        floor=FLOOR,
        invocations=succeeded + failed + unknown,
        succeeded=succeeded,
        failed=failed,
        unknown=unknown,
        faults=records,
        buckets=buckets,
        connections=[_look(number / 100, records, chance) for number in range(round(seconds * 100))],
        notes=[(3.1, "t4 is registered with the balancer"), (9.2, "the standby has been promoted")],
        verdicts=[
            Verdict(name, sentence, name not in violated, [] if name not in violated else [f"at 12.3 s: {name}"])
            for name, sentence in ORACLES
        ],
    )


def _fault(number: int, seconds: float, count: int, chance: random.Random) -> FaultRecord:
    name, title, promise, may_fail_seconds, most = FAULTS[number % len(FAULTS)]
    begun = 2 + number * (seconds - 4) / count
    ended = begun + chance.choice((0.01, 0.5, 2.0))
    failed = 0 if may_fail_seconds is None else 3 if name == "pgbouncer-killed" else number % 2
    return FaultRecord(
        name=name,
        title=title,
        promise=promise,
        subject=f"t{number % 3 + 1}",
        begun=begun,
        ended=ended,
        may_fail_until=None if may_fail_seconds is None else ended + may_fail_seconds,
        most_failures=most,
        failed=failed,
        unknown=failed % 2,
        recovered_after_seconds=None if name == "task-vanished" else 0.4,
    )


def _bucket(number: int, faults: Sequence[FaultRecord], chance: random.Random) -> Bucket:
    at = number * BUCKET_SECONDS
    struck = next((fault for fault in faults if fault.begun <= at < fault.ended + 0.5), None)
    begins = [fault for fault in faults if at <= fault.begun < at + BUCKET_SECONDS]
    return Bucket(
        at=at,
        succeeded=max(0, round(chance.gauss(12 if struck and struck.may_fail_until else 40, 4))),
        failed=sum(fault.failed for fault in begins),
        unknown=sum(fault.unknown for fault in begins),
        slowest_ms=(chance.uniform(500, 900) if struck else chance.uniform(15, 60)),
    )


def _look(at: float, faults: Sequence[FaultRecord], chance: random.Random) -> Connections:
    generation = sum(
        1 for fault in faults if fault.name in {"rolling-deployment", "task-vanished"} and at > fault.ended
    )
    tasks = [f"t{number}" for number in range(1 + generation, 4 + generation)]
    struck = any(fault.begun <= at < fault.ended and fault.name == "failover" for fault in faults)
    slots = {task: SLOTS // 3 - chance.randrange(2) for task in tasks}
    return Connections(
        at=at,
        pool={} if struck else {task: FLOOR + held - chance.randrange(2) for task, held in slots.items()},
        agents={} if struck else dict.fromkeys(tasks, 1),
        slots={} if struck else slots,
    )
