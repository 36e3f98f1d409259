"""The lab's oracles find what they are there for: each sees its mutant of a run in which everything held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from emberpool_local.lab.ledger import FIRST_BALANCE, Ledger, Transfer
from emberpool_local.lab.load import Failure, Invocation
from emberpool_local.lab.oracles import Evidence, Limits, judged
from emberpool_local.lab.results import FaultRecord
from emberpool_local.lab.sampler import Sample
from emberpool_local.lab.time_line import around_violation

BUDGET, FLOOR, SLOTS = 20, 2, 6
SECONDS = 10
KILLED, SILENT_FAULT = 9, "task-vanished"
UNKNOWN_KEPT, UNKNOWN_LOST = 5, 6
HIT = 7
ONE, OTHER = "10.77.0.21", "10.77.0.22"


def invocation(number: int, **changes: object) -> Invocation:
    """One transfer a half second, that takes 0.1 s."""
    made = Invocation(Transfer(number, number, number + 1, 10), number / 2, number / 2 + 0.1, "succeeded", number)
    return replace(made, **changes)  # type: ignore[arg-type]


def failure(step: str = "later statement", at: float = 0.0, **changes: object) -> Failure:
    made = Failure("OperationalError", "server closed the connection", step, at, at + 0.05, is_connection_error=True)
    return replace(made, **changes)  # type: ignore[arg-type]


def fault(**changes: object) -> FaultRecord:
    made = FaultRecord("pgbouncer-killed", "PgBouncer crashes", "…", f"task {ONE}", 3.4, 3.5, 4.0, None, 1, 0, 0.2)
    return replace(made, **changes)  # type: ignore[arg-type]


def sample(number: int, **changes: object) -> Sample:
    made = Sample(number / 10, 0.0, {ONE: 5, OTHER: 4}, {ONE: 1, OTHER: 1}, {ONE: 3, OTHER: 2})
    return replace(made, **changes)  # type: ignore[arg-type]


def ledger_of(transfers: Sequence[Transfer]) -> Ledger:
    balances = [FIRST_BALANCE] * 30
    for one in transfers:
        balances[one.source] -= one.amount
        balances[one.target] += one.amount
    return Ledger(list(transfers), balances)


def run_that_holds() -> Evidence:
    """A run with a failure where a fault explains it, two unknown outcomes, and an environment that died."""
    invocations = [invocation(number) for number in range(2 * SECONDS)]
    invocations[UNKNOWN_KEPT] = invocation(UNKNOWN_KEPT, kind="unknown", failure=failure("commit"), ended=3.45)
    invocations[UNKNOWN_LOST] = invocation(UNKNOWN_LOST, kind="unknown", failure=failure("commit"), ended=3.45)
    invocations[HIT] = invocation(HIT, kind="failed", failure=failure("first statement", at=3.51))
    invocations[KILLED] = invocation(KILLED, kind="killed")
    kept = [one.transfer for one in invocations if one.transfer.number not in (UNKNOWN_LOST, HIT, KILLED)]
    samples = [sample(number) for number in range(10 * SECONDS)]
    samples[50] = sample(50, transfers=[KILLED])  # 0.4 s after its environment died
    return Evidence(
        invocations,
        ledger_of(kept),
        samples,
        [fault()],
        [Limits(-1.0, BUDGET, FLOOR, SLOTS)],
        frozenset({SILENT_FAULT}),
    )


def broken(evidence: Evidence) -> list[str]:
    return [verdict.oracle for verdict in judged(evidence) if not verdict.holds]


def test_run_that_holds_is_found_to_hold() -> None:
    """No oracle complains of failures that a fault explains, of unknown outcomes, or of a budget used up."""
    evidence = run_that_holds()
    assert broken(evidence) == []
    full = [*evidence.samples, sample(77, pool={ONE: 6, OTHER: 4}, agents={ONE: 5, OTHER: 5})]
    assert broken(replace(evidence, samples=full)) == []


def without(evidence: Evidence, number: int) -> Evidence:
    kept = [one for one in evidence.ledger.transfers if one.number != number]
    return replace(evidence, ledger=ledger_of(kept))


def kept_too(evidence: Evidence, transfer: Transfer) -> Evidence:
    return replace(evidence, ledger=ledger_of([*evidence.ledger.transfers, transfer]))


def other(evidence: Evidence, number: int, **changes: object) -> Evidence:
    invocations = list(evidence.invocations)
    invocations[number] = replace(invocations[number], **changes)  # type: ignore[arg-type]
    return replace(evidence, invocations=invocations)


def sampled_too(evidence: Evidence, one: Sample) -> Evidence:
    return replace(evidence, samples=sorted([*evidence.samples, one], key=lambda sample: sample.at))


def richer(evidence: Evidence) -> Evidence:
    first, *rest = evidence.ledger.balances
    return replace(evidence, ledger=Ledger(evidence.ledger.transfers, [first + 1, *rest]))


FAILED = {"kind": "failed", "failure": failure("commit")}
MUTANTS: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "an acknowledged transfer is not there": ("no acknowledged commit lost", lambda run: without(run, 2)),
    "a transfer is there twice": ("none applied twice", lambda run: kept_too(run, invocation(2).transfer)),
    "an unknown one is there twice": ("none applied twice", lambda run: kept_too(run, invocation(5).transfer)),
    "nobody asked for a transfer": ("none applied twice", lambda run: kept_too(run, Transfer(99, 1, 2, 1))),
    "a balance is not the transfers'": ("money conserved", richer),
    "it failed and was committed": ("every unknown outcome said", lambda run: other(run, UNKNOWN_KEPT, **FAILED)),
    "one connection above the budget": (
        "connections within the budget",
        lambda run: sampled_too(run, sample(77, agents={ONE: 6, OTHER: 6})),
    ),
    "one connection above floors and slots": (
        "connections within the budget",
        lambda run: sampled_too(run, sample(77, pool={ONE: 7, OTHER: 4})),
    ),
    "nobody looked": ("connections within the budget", lambda run: replace(run, samples=[])),
    "nobody looked for a while": (
        "connections within the budget",
        lambda run: replace(run, samples=[one for one in run.samples if not 5 < one.at < 9]),
    ),
    "a statement outlives its environment": (
        "no orphan query",
        lambda run: sampled_too(run, sample(57, transfers=[KILLED])),
    ),
    "a handler began on a dead connection": (
        "no dead connection at a handler's start",
        lambda run: other(run, HIT, failure=failure("first statement", at=5.0)),
    ),
    "it failed without a fault": (
        "failures as promised",
        lambda run: other(without(run, 12), 12, kind="failed", failure=failure()),
    ),
    "it failed by a fault that may not": (
        "failures as promised",
        lambda run: replace(run, faults=[fault(may_fail_until=None)]),
    ),
    "an environment failed by a fault, and then again": (
        "failures as promised",
        lambda run: other(without(run, 8), 8, kind="failed", failure=failure(at=3.6), environment=HIT),
    ),
    "more failed than may": (
        "failures as promised",
        lambda run: replace(run, faults=[fault(most_failures=2, failed=1, unknown=2)]),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_of_a_run_is_found_by_its_oracle_alone(mutant: str) -> None:
    """One thing is wrong: the oracle that is there for it is violated, and (but for the dead start) no other."""
    oracle, mutate = MUTANTS[mutant]
    expected = [oracle]
    evidence = mutate(run_that_holds())
    if mutant == "it failed by a fault that may not":
        expected = ["no dead connection at a handler's start", "failures as promised"]
    assert broken(evidence) == expected
    (verdict,) = [one for one in judged(evidence) if one.oracle == oracle]
    assert verdict.details


def test_orphan_is_excused_while_nobody_can_tell_of_the_death() -> None:
    """In a silent network the statement of a dead environment ends by its timeout, later than a second."""
    late = sampled_too(run_that_holds(), sample(57, transfers=[KILLED]))
    assert broken(late) == ["no orphan query"]
    silent = fault(name=SILENT_FAULT, begun=4.2, ended=4.8, may_fail_until=6.0)
    assert broken(replace(late, faults=[*late.faults, silent])) == []


def test_budget_that_was_cut_counts_from_then_on() -> None:
    """A sample is judged by the limits of its moment."""
    cut = [Limits(-1.0, BUDGET, FLOOR, SLOTS), Limits(8.0, BUDGET - 10, FLOOR, SLOTS - 4)]
    (verdict,) = [one for one in judged(replace(run_that_holds(), limits=cut)) if not one.holds]
    assert (verdict.oracle, verdict.details[0][:5]) == ("connections within the budget", "8.000")


def test_backend_of_who_has_just_died_may_linger_within_the_budget() -> None:
    """PgBouncer opens another connection at once; the whole fleet's budget holds all the same."""
    died = run_that_holds().invocations[KILLED].ended
    one_more = sample(0, at=died + 0.3, pool={ONE: 7, OTHER: 4})
    assert broken(sampled_too(run_that_holds(), one_more)) == []
    for too_much in (
        replace(one_more, at=died + 2.0),
        replace(one_more, pool={ONE: 8, OTHER: 4}),
        replace(one_more, agents={ONE: 5, OTHER: 5}),
    ):
        assert broken(sampled_too(run_that_holds(), too_much)) == ["connections within the budget"]


def test_violation_is_shown_with_what_happened_around_it() -> None:
    """The time line has the fault, what was done, the failures, and the samples next to the moment."""
    evidence = other(without(run_that_holds(), 12), 12, kind="failed", failure=failure())
    (verdict,) = [one for one in judged(evidence) if not one.holds]
    shown = around_violation(evidence, [(5.9, "the agent is killed"), (60.0, "much later")], verdict)
    for part in (
        ">>> pgbouncer-killed",
        "<<< pgbouncer-killed",
        "* the agent is killed",
        "! transfer 12",
        ".21: 5+1 of 3",
    ):
        assert part in shown
    assert "much later" not in shown
    assert [float(line.split()[0]) for line in shown.splitlines()] == sorted(
        float(line.split()[0]) for line in shown.splitlines()
    )
