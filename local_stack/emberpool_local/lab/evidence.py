"""Puts together what a run left behind: everything on one clock, judged by the oracles, as one LabResult."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from emberpool_local.burst.results import Machine
from emberpool_local.lab.ledger import Ledger
from emberpool_local.lab.load import Invocation
from emberpool_local.lab.oracles import AFTERMATH_SECONDS, Evidence, Limits, fault_of, has_failed, judged
from emberpool_local.lab.results import Bucket, Connections, FaultRecord, LabResult, Verdict
from emberpool_local.lab.sampler import Sample
from emberpool_local.lab.sequence import Happened
from emberpool_local.lab.throughput import baseline, buckets_of, recovered_after

# In these nobody can tell the database that a client has died: what it runs ends by its statement_timeout.
SILENT = frozenset(
    {"task-vanished", "database-partition", "functions-partition", "network-delay", "packet-loss", "silent-drop"}
)
LATEST_SECONDS = 0.2  # for so long a server is taken to be as it was sampled last


@dataclass(frozen=True)
class Run:
    """What was recorded, on the clock of time.monotonic()."""

    seed: int
    command: str
    measured_at: datetime.datetime
    machine: Machine
    environments: int
    tasks: int
    invocations: Sequence[Invocation]
    ledger: Ledger
    samples: Sequence[Sample]
    happened: Sequence[Happened]
    limits: Sequence[Limits]
    notes: Sequence[tuple[float, str]]
    network: str
    logs: Sequence[tuple[float, str]] = ()


def gathered(run: Run) -> tuple[LabResult, Evidence]:
    """Return the judged result, and what it was judged by. Raises ValueError for a run without an invocation."""
    if not run.invocations:
        raise ValueError("no invocation has ended")
    begin = min(invocation.begun for invocation in run.invocations)
    invocations = [_moved(invocation, begin) for invocation in run.invocations]
    seconds = max(invocation.ended for invocation in invocations)
    buckets = buckets_of(invocations, seconds)
    samples = [replace(sample, at=round(sample.at - begin, 4)) for sample in run.samples]
    faults = _counted(_records(run.happened, begin, buckets), invocations)
    limits = [replace(limit, since=limit.since - begin) for limit in run.limits]
    logs = [(at - begin, text) for at, text in run.logs]
    evidence = Evidence(invocations, run.ledger, samples, faults, limits, SILENT, logs)
    kinds = [invocation.kind for invocation in invocations]
    result = LabResult(
        seed=run.seed,
        command=run.command,
        seconds=round(seconds, 3),
        measured_at=run.measured_at.isoformat(timespec="seconds"),
        machine=run.machine,
        network=run.network,
        environments=run.environments,
        tasks=run.tasks,
        budget=run.limits[0].budget,
        slots=run.limits[0].slots,
        floor=run.limits[0].floor,
        invocations=len(kinds) - kinds.count("killed"),
        succeeded=kinds.count("succeeded"),
        failed=kinds.count("failed"),
        unknown=kinds.count("unknown"),
        faults=faults,
        buckets=buckets,
        connections=_connections(samples),
        notes=[(round(at - begin, 3), text) for at, text in run.notes],
        verdicts=[*judged(evidence), _healed(run.happened, begin)],
    )
    return result, evidence


def _moved(invocation: Invocation, begin: float) -> Invocation:
    failure = invocation.failure
    if failure is not None:
        began = None if failure.handler_began is None else failure.handler_began - begin
        failed = None if failure.failed_at is None else failure.failed_at - begin
        failure = replace(failure, handler_began=began, failed_at=failed)
    return replace(invocation, begun=invocation.begun - begin, ended=invocation.ended - begin, failure=failure)


def _records(happened: Sequence[Happened], begin: float, buckets: Sequence[Bucket]) -> list[FaultRecord]:
    records: list[FaultRecord] = []
    well_since = 0.0
    last = buckets[-1].at if buckets else 0.0
    for one, following in itertools.zip_longest(happened, happened[1:]):
        begun, ended = one.begun - begin, one.ended - begin
        usual = baseline(buckets, begun, well_since)
        until = following.begun - begin if following else last
        back = recovered_after(buckets, usual, (begun, ended), one.lasts, until)
        well_since = max(one.healed - begin, ended + (back or 0.0))
        may_fail = one.fault.may_fail_seconds
        records.append(
            FaultRecord(
                name=one.fault.name,
                title=one.fault.title,
                promise=one.fault.promise,
                subject=one.subject,
                begun=round(begun, 3),
                ended=round(ended, 3),
                may_fail_until=None if may_fail is None else round(ended + may_fail, 3),
                most_failures=0 if may_fail is None else one.fault.most_failures,
                failed=0,
                unknown=0,
                recovered_after_seconds=back,
            )
        )
    return records


def _counted(faults: Sequence[FaultRecord], invocations: Iterable[Invocation]) -> list[FaultRecord]:
    """Return the faults with the failures that they may explain; what none explains counts for the one at work then."""
    failed, unknown = [0] * len(faults), [0] * len(faults)
    for invocation in filter(has_failed, invocations):
        cause = fault_of(invocation, faults) or _at_work(invocation, faults)
        if cause is not None:
            counts = unknown if invocation.kind == "unknown" else failed
            counts[faults.index(cause)] += 1
    return [replace(fault, failed=failed[number], unknown=unknown[number]) for number, fault in enumerate(faults)]


def _at_work(invocation: Invocation, faults: Sequence[FaultRecord]) -> FaultRecord | None:
    at_work = [
        fault
        for fault in faults
        if fault.begun <= invocation.ended and invocation.begun <= fault.ended + AFTERMATH_SECONDS
    ]
    return at_work[-1] if at_work else None


def _connections(samples: Iterable[Sample]) -> list[Connections]:
    """Return the looks to be drawn: none at a server without the fleet while another server has it."""
    latest: dict[str, Sample] = {}
    shown: list[Connections] = []
    for one in sorted(samples, key=lambda sample: sample.at):
        latest[one.server] = one
        is_elsewhere = any(
            other.connections and one.at - other.at < LATEST_SECONDS for other in latest.values() if other is not one
        )
        if one.at >= 0 and (one.connections or not is_elsewhere):
            shown.append(Connections(one.at, one.pool, one.agents, one.slots))
    return shown


def _healed(happened: Sequence[Happened], begin: float) -> Verdict:
    errors = [f"{one.begun - begin:.3f} {one.fault.name}, {one.subject}: {one.error}" for one in happened if one.error]
    sentence = f"after each fault the fleet is whole again ({len(happened)} faults)"
    return Verdict("every fault healed", sentence, not errors, errors)
