"""The time line around a moment of a run, as text: faults, what was done, what failed, and what the database had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from emberpool_local.lab.load import Invocation
from emberpool_local.lab.oracles import Evidence, has_failed
from emberpool_local.lab.results import FaultRecord, Verdict

BEFORE_SECONDS, AFTER_SECONDS = 10.0, 2.0
SAMPLES_AROUND = 8  # on each side of the moment
MOST_FAILED = 12
MOST_LOGGED = 30
WIDEST = 160

Line = tuple[float, str]


def around_violation(evidence: Evidence, notes: Sequence[Line], verdict: Verdict) -> str:
    """Return the time line around the first thing that broke an oracle; empty when it names no moment."""
    moments = (re.match(r"-?[0-9]+\.[0-9]+", detail) for detail in verdict.details)
    first = next((float(found[0]) for found in moments if found), None)
    return "" if first is None else time_line(evidence, notes, first)


def time_line(evidence: Evidence, notes: Sequence[Line], around: float) -> str:
    """Return what happened from 10 s before the moment to 2 s after it; samples and log lines only next to it."""
    first, last = around - BEFORE_SECONDS, around + AFTER_SECONDS
    lines = [*_faults(evidence.faults), *((at, f"* {text}") for at, text in notes)]
    lines += [*_failed(evidence.invocations, around), *_logged(evidence.logs, around)]
    lines = [line for line in lines if first <= line[0] <= last]
    seen = [sample for sample in evidence.samples if sample.connections] or evidence.samples
    near = sorted(seen, key=lambda sample: abs(sample.at - around))[: 2 * SAMPLES_AROUND]
    lines += [(sample.at, f"  {sample.line(0)[9:]}") for sample in near]
    return "\n".join(f"{at:8.3f}  {text[:WIDEST]}" for at, text in sorted(lines, key=lambda line: line[0]))


def _faults(faults: Sequence[FaultRecord]) -> Iterator[Line]:
    for fault in faults:
        yield fault.begun, f">>> {fault.name}: {fault.subject}"
        yield fault.ended, f"<<< {fault.name}"


def _failed(invocations: Sequence[Invocation], around: float) -> list[Line]:
    failed = sorted(filter(has_failed, invocations), key=lambda one: abs(one.ended - around))[:MOST_FAILED]
    return [
        (one.ended, f"! transfer {one.transfer.number}, {one.duration_ms:.0f} ms: {_one_line(str(one.failure))}")
        for one in failed
    ]


def _logged(logs: Sequence[Line], around: float) -> list[Line]:
    nearest = sorted(logs, key=lambda line: abs(line[0] - around))[:MOST_LOGGED]
    return [(at, f"  log {text}") for at, text in nearest]


def _one_line(text: str) -> str:
    return " ".join(text.split())
