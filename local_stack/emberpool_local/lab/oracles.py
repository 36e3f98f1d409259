"""What must be true of a run of the lab, whatever was done to it. Pure: from what was asked, answered, kept and seen.

The promises are the design's. Each oracle returns one Verdict; its details are a few of the things that broke it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from emberpool_local.lab.handlers.steps import FIRST_STATEMENT
from emberpool_local.lab.ledger import FIRST_BALANCE, Ledger
from emberpool_local.lab.load import Invocation
from emberpool_local.lab.results import FaultRecord, Verdict
from emberpool_local.lab.sampler import Sample, summary

MOST_DETAILS = 6
LONGEST_DETAIL = 400
ORPHAN_SECONDS = 1.0
LINGERING_SECONDS = 0.5  # ten times as long as a backend takes to see that its client has gone
LATE_NEWS_SECONDS = 0.1  # the lab knows of an end later than PgBouncer
# A fault that is over when its context is left may still be felt in what was being answered.
AFTERMATH_SECONDS = 0.5
# Longer than this without a sample of a database that runs, and nobody knows how many connections there were.
LONGEST_UNSEEN_SECONDS = 3.0


@dataclass(frozen=True)
class Limits:
    """What the fleet may have from a moment on."""

    since: float
    budget: int
    floor: int
    slots: int


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run; all moments are seconds since its first invocation.

    `silent` are the names of the faults in which nobody can tell the database that a client has died.
    """

    invocations: Sequence[Invocation]
    ledger: Ledger
    samples: Sequence[Sample]
    faults: Sequence[FaultRecord]
    limits: Sequence[Limits]
    silent: frozenset[str] = field(default_factory=frozenset)
    logs: Sequence[tuple[float, str]] = ()  # what the tasks logged that are there at the end


def judged(evidence: Evidence) -> list[Verdict]:
    """Return the verdict of every oracle."""
    oracles = (
        nothing_lost,
        nothing_twice,
        money_conserved,
        unknown_is_said,
        within_budget,
        no_orphans,
        no_dead_connection,
        failures_as_promised,
    )
    return [oracle(evidence) for oracle in oracles]


def nothing_lost(evidence: Evidence) -> Verdict:
    """Every transfer whose caller was told that it is done is in the ledger, as it was asked for."""
    kept = {transfer.number: transfer for transfer in evidence.ledger.transfers}
    acknowledged = [one for one in evidence.invocations if one.kind == "succeeded"]
    return _verdict(
        "no acknowledged commit lost",
        f"every acknowledged transfer is in the ledger, as it was asked for ({len(acknowledged)} are acknowledged)",
        (
            f"{_when(one)} transfer {one.transfer.number} was acknowledged, the ledger has "
            f"{kept.get(one.transfer.number, 'nothing of it')}"
            for one in acknowledged
            if kept.get(one.transfer.number) != one.transfer
        ),
    )


def nothing_twice(evidence: Evidence) -> Verdict:
    """No transfer is in the ledger twice, and none that nobody asked for."""
    asked = {one.transfer.number: one for one in evidence.invocations}
    counts = Counter(transfer.number for transfer in evidence.ledger.transfers)
    return _verdict(
        "none applied twice",
        "every transfer in the ledger was asked for, and is there once",
        (
            f"{_when(asked.get(number))} transfer {number} is there {count} times"
            + ("" if number in asked else ", and nobody asked for it")
            for number, count in counts.items()
            if count > 1 or number not in asked
        ),
    )


def money_conserved(evidence: Evidence) -> Verdict:
    """Every balance is what the transfers in the ledger make of it."""
    wanted = [FIRST_BALANCE] * len(evidence.ledger.balances)
    for transfer in evidence.ledger.transfers:
        wanted[transfer.source] -= transfer.amount
        wanted[transfer.target] += transfer.amount
    pairs = enumerate(zip(evidence.ledger.balances, wanted, strict=True))
    total = sum(evidence.ledger.balances)
    return _verdict(
        "money conserved",
        f"every balance is what the ledger's transfers make of it ({len(wanted)} accounts, {total} in all)",
        (f"account {number} has {has}, not {should}" for number, (has, should) in pairs if has != should),
    )


def unknown_is_said(evidence: Evidence) -> Verdict:
    """Whoever failed although the transfer is in the ledger was told that the commit's outcome is unknown."""
    kept = {transfer.number for transfer in evidence.ledger.transfers}
    unknown = [one for one in evidence.invocations if one.kind == "unknown"]
    were_kept = sum(one.transfer.number in kept for one in unknown)
    return _verdict(
        "every unknown outcome said",
        f"no failed transfer is in the ledger unless reported as unknown ({were_kept} of {len(unknown)} of these)",
        (
            f"{_when(one)} transfer {one.transfer.number} failed, {one.failure}, and is in the ledger"
            for one in evidence.invocations
            if one.kind == "failed" and one.transfer.number in kept
        ),
    )


def within_budget(evidence: Evidence) -> Verdict:
    """No sample has more connections than the budget, nor (but for who has just died) more of pools than may be."""
    samples = evidence.samples
    seen = summary(samples) if samples else "nothing was sampled"
    ended_badly = sorted(one.ended for one in evidence.invocations if one.kind != "succeeded")
    above = (_above(sample, _limits_at(evidence.limits, sample.at), ended_badly) for sample in samples)
    details = (["nothing was sampled"] if not samples else []) + list(_unseen(evidence))
    budget = evidence.limits[0].budget if evidence.limits else 0
    return _verdict(
        "connections within the budget",
        f"never more than {budget} server connections of the fleet: {seen}",
        [*(line for line in above if line), *details],
    )


def no_orphans(evidence: Evidence) -> Verdict:
    """No statement runs in the database later than a second after its environment died."""
    died = {one.transfer.number: one for one in evidence.invocations if _environment_died(one)}
    found: dict[int, float] = {}
    for sample in evidence.samples:
        for number in sample.transfers:
            if number in died and sample.at > died[number].ended + ORPHAN_SECONDS:
                found[number] = sample.at
    return _verdict(
        "no orphan query",
        f"no statement runs a second after its environment died ({len(died)} died in a transfer)",
        (
            f"{_when(died[number])} the environment of transfer {number} died, its statement still ran "
            f"{at - died[number].ended:.2f} s later"
            for number, at in found.items()
            if not _is_hidden(died[number], evidence)
        ),
    )


def no_dead_connection(evidence: Evidence) -> Verdict:
    """No handler's first statement failed on its connection, but for one that was hit just then."""
    hit = [one for one in evidence.invocations if _failed_at_first_statement(one)]
    return _verdict(
        "no dead connection at a handler's start",
        f"no handler begins on a dead connection ({len(evidence.invocations)} invocations)",
        (f"{_when(one)} transfer {one.transfer.number}: {one.failure}" for one in hit if not _was_hit(one, evidence)),
    )


def failures_as_promised(evidence: Evidence) -> Verdict:
    """Invocations failed only where a fault's promise lets them, and not more than it says."""
    details = [
        f"{_when(one)} {one.failure}, with no fault that may do that{_under_way(one, evidence.faults)}"
        for one in evidence.invocations
        if has_failed(one) and fault_of(one, evidence.faults) is None
    ]
    details += [
        f"{fault.begun:.3f} {fault.name}: {fault.failed + fault.unknown} invocations failed, "
        f"at most {fault.most_failures} may"
        for fault in evidence.faults
        if fault.most_failures is not None and fault.failed + fault.unknown > fault.most_failures
    ]
    details += list(_failed_twice(evidence))
    failed = sum(map(has_failed, evidence.invocations))
    return _verdict(
        "failures as promised",
        f"invocations fail only where the failure table lets them ({failed} of {len(evidence.invocations)} failed)",
        details,
    )


def _failed_twice(evidence: Evidence) -> Iterator[str]:
    """Find environments whose handlers a fault hit again: what was in flight may fail, what comes next begins well.

    What fails before its handler, as no connection could be opened for connect_retry_seconds, does not count.
    """
    seen: dict[tuple[int, float], Invocation] = {}
    hit = [one for one in evidence.invocations if has_failed(one) and one.failure and one.failure.handler_began]
    for one in sorted(hit, key=lambda one: one.begun):
        fault = fault_of(one, evidence.faults)
        if fault is None or fault.most_failures is not None:
            continue
        first = seen.setdefault((one.environment, fault.begun), one)
        if first is not one:
            yield (
                f"{_when(one)} environment {one.environment} failed again by {fault.name}: {one.failure}; "
                f"{_when(first)} it was {first.failure}"
            )


def has_failed(invocation: Invocation) -> bool:
    """Whether its caller did not get an answer; one whose environment we killed does not count."""
    return invocation.kind in ("failed", "unknown")


def fault_of(invocation: Invocation, faults: Iterable[FaultRecord]) -> FaultRecord | None:
    """Return the last fault that may have made the invocation fail, by when it was under way."""
    may = [
        fault
        for fault in faults
        if fault.may_fail_until is not None
        and invocation.begun <= fault.may_fail_until
        and fault.begun <= invocation.ended
    ]
    return max(may, key=lambda fault: fault.begun, default=None)


def _verdict(oracle: str, sentence: str, broken: Iterable[str]) -> Verdict:
    details = [" ".join(line.split())[:LONGEST_DETAIL] for line in broken]
    shown = details[:MOST_DETAILS]
    if len(details) > MOST_DETAILS:
        shown.append(f"and {len(details) - MOST_DETAILS} more")
    return Verdict(oracle, sentence, not details, shown)


def _when(invocation: Invocation | None) -> str:
    return f"{invocation.begun:.3f} to {invocation.ended:.3f}" if invocation else "?"


def _limits_at(limits: Sequence[Limits], at: float) -> Limits | None:
    return max((one for one in limits if one.since <= at), key=lambda one: one.since, default=None)


def _above(sample: Sample, limits: Limits | None, ended_badly: Sequence[float]) -> str | None:
    """Say what is above the limits.

    The backend of a client that died in a statement lives on for a moment, and PgBouncer opens another at once: the
    pools may have that many more, but not the fleet more than its budget.
    """
    if limits is None:
        return None
    pools = sum(sample.pool.values())
    lingering = bisect_right(ended_badly, sample.at + LATE_NEWS_SECONDS) - bisect_left(
        ended_badly, sample.at - LINGERING_SECONDS
    )
    of_pools = limits.floor * len(sample.pool) + limits.slots + lingering
    if sample.connections > limits.budget:
        return f"{sample.at:.3f} {sample.connections} connections, the budget has {limits.budget}: {sample.line(0)}"
    if pools > of_pools:
        return (
            f"{sample.at:.3f} {pools} connections of pools, floors and slots are {of_pools} for {len(sample.pool)} "
            f"tasks: {sample.line(0)}"
        )
    return None


def _unseen(evidence: Evidence) -> Iterator[str]:
    """Find times without a sample in which no fault was at work: a run that nobody watched proves nothing."""
    moments = sorted(sample.at for sample in evidence.samples)
    for before, after in itertools.pairwise(moments):
        if after - before > LONGEST_UNSEEN_SECONDS and not any(
            fault.begun <= after and before <= fault.ended + AFTERMATH_SECONDS for fault in evidence.faults
        ):
            yield f"{before:.3f} to {after:.3f}: no sample, though no fault was at work"


def _environment_died(invocation: Invocation) -> bool:
    died = invocation.failure is not None and invocation.failure.error_type in ("Runtime.ExitError", "Sandbox.Timedout")
    return invocation.kind == "killed" or died


def _is_hidden(invocation: Invocation, evidence: Evidence) -> bool:
    """Whether nobody could tell the database of the death, because the network was silent."""
    return any(
        fault.name in evidence.silent
        and fault.begun <= invocation.ended + ORPHAN_SECONDS
        and invocation.begun <= max(fault.ended, fault.may_fail_until or 0.0)
        for fault in evidence.faults
    )


def _failed_at_first_statement(invocation: Invocation) -> bool:
    failure = invocation.failure
    return failure is not None and failure.step == FIRST_STATEMENT and failure.is_connection_error


def _was_hit(invocation: Invocation, evidence: Evidence) -> bool:
    """Whether a fault was at work between the handler's start and its failure.

    The layer has had an answer over the connection just before the start: a connection that is dead then is the
    layer's fault, and not that of an earlier one whose aftermath lasts.
    """
    failure = invocation.failure
    began = (failure and failure.handler_began) or invocation.begun
    failed = (failure and failure.failed_at) or invocation.ended
    return any(
        fault.may_fail_until is not None and fault.begun <= failed and began <= fault.ended + AFTERMATH_SECONDS
        for fault in evidence.faults
    )


def _under_way(invocation: Invocation, faults: Iterable[FaultRecord]) -> str:
    names = [
        f"{fault.name} ({fault.begun:.3f} to {fault.ended:.3f})" for fault in faults if fault.begun <= invocation.ended
    ]
    return f"; the last fault was {names[-1]}" if names else ""
