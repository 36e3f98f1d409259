"""The oracles of the budget's model can fail: each wrong decision is found by the promise that it breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emberpool_local.simulation.agent_model import Step
from emberpool_local.simulation.faults import Fault, Kind
from emberpool_local.simulation.plan import Plan, plan_of
from emberpool_local.simulation.shortest import shortest
from emberpool_local.simulation.world import Outcome, run

from . import budget_mutants as mutants

HUNGRY = tuple(Fault(0.0, Kind.DEMAND, task, amount=40) for task in range(3))
CUTS = tuple(Fault(4.0 + 2 * index, Kind.CUT_CONTROL, index) for index in range(8))
ALL_HUNGRY = Plan(0, tasks=3, most_tasks=3, floor=1, slots=12, long_share=0.3, longest_transaction=2.0, faults=HUNGRY)
CUT_OFTEN = replace(ALL_HUNGRY, faults=HUNGRY + CUTS)
LATE_COMER = replace(ALL_HUNGRY, faults=(*HUNGRY[:2], replace(HUNGRY[2], at=5.0)))
ONE_HUNGRY = replace(ALL_HUNGRY, faults=HUNGRY[:1])
MANY_SLOTS = replace(ALL_HUNGRY, slots=24)
SEEDS = range(8)


def promises_broken(plan: Plan, step: Step) -> list[str]:
    """Return which promise breaks first, for the first seed with which one does."""
    for seed in SEEDS:
        if promise := run(replace(plan, seed=seed), step).promise:
            return [promise]
    return []


@pytest.mark.parametrize(
    ("plan", "step", "promises"),
    [
        (ALL_HUNGRY, mutants.gives_before_the_count_is_down, {"given too early"}),
        (CUT_OFTEN, mutants.raises_before_it_has_taken, {"entitlement", "budget"}),
        (CUT_OFTEN, mutants.uses_slots_before_they_settle, {"budget"}),
        (CUT_OFTEN, mutants.does_not_count_what_the_database_counts, {"budget"}),
        (CUT_OFTEN, mutants.keeps_its_limits_when_the_connection_is_lost, {"budget", "entitlement"}),
        (LATE_COMER, mutants.knows_nobody_else, {"starvation"}),
        (ALL_HUNGRY, mutants.never_takes, {"lost slots", "starvation"}),
        (ONE_HUNGRY, mutants.never_gives, {"idle", "starvation"}),
        (ALL_HUNGRY, mutants.stays_connected, {"idle"}),
        (MANY_SLOTS, mutants.changes_its_mind, {"flapping", "starvation", "lost slots"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_decision_breaks_its_promise(plan: Plan, step: Step, promises: set[str]) -> None:
    """A step with one rule broken is found within a few seeds, and by the oracle that is meant for it."""
    assert set(promises_broken(plan, step)) & promises


def test_a_broken_promise_is_told_with_the_shortest_list_of_faults() -> None:
    """Faults without which the promise still breaks are dropped from what is printed."""
    outcome: Outcome = run(replace(plan_of(0), faults=CUT_OFTEN.faults), mutants.gives_before_the_count_is_down)
    short = shortest(outcome, mutants.gives_before_the_count_is_down)
    assert short.promise == outcome.promise == "given too early"
    assert len(short.plan.faults) < len(outcome.plan.faults)
    assert "BROKEN given too early" in str(short)
