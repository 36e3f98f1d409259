"""The fleet's budget in virtual time: the real decide.step in every task, under faults, with oracles at every event."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emberpool_local.simulation.faults import Fault, Kind
from emberpool_local.simulation.plan import Plan, plan_of
from emberpool_local.simulation.shortest import shortest
from emberpool_local.simulation.world import run

FIRST_SEED, WORLDS = 0, 24


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + WORLDS, 8))
def test_no_promise_is_broken_in_random_worlds(first: int) -> None:
    """Whatever the seeds bring, the budget holds, nobody starves, and no slot is lost; a failure prints few faults."""
    for seed in range(first, first + 8):
        outcome = run(plan_of(seed))
        assert not outcome.broken, f"\n{shortest(outcome)}"


def lost_control_connections(seed: int) -> Plan:
    """Everybody is hungry, with transactions of seconds, and somebody's control connection is cut every two seconds."""
    hungry = tuple(Fault(0.0, Kind.DEMAND, task, amount=40) for task in range(3))
    cuts = tuple(Fault(4.0 + 2 * index, Kind.CUT_CONTROL, index) for index in range(8))
    return Plan(
        seed, tasks=3, most_tasks=3, floor=1, slots=12, long_share=0.3, longest_transaction=2.0, faults=hungry + cuts
    )


@pytest.mark.parametrize("seed", range(4))
def test_slots_of_a_lost_control_connection_are_used_when_its_connections_are_gone(seed: int) -> None:
    """Others take the slots at once; the connections above the budget they would cause are not opened."""
    outcome = run(lost_control_connections(seed))
    assert not outcome.broken, f"\n{outcome}"


@pytest.mark.parametrize("seed", range(2))
def test_a_control_connection_lost_while_the_agent_restarts_keeps_the_budget(seed: int) -> None:
    """Nobody lowers the limits of such a task for two seconds; the others leave it what it has."""
    plan = lost_control_connections(seed)
    kills = tuple(replace(fault, at=fault.at - 0.05, kind=Kind.KILL_AGENT) for fault in plan.faults[3:])
    outcome = run(replace(plan, faults=tuple(sorted(plan.faults + kills, key=lambda fault: fault.at))))
    assert not outcome.broken, f"\n{outcome}"


def test_one_more_connection_is_possible_where_the_database_cannot_tell_the_tasks_apart() -> None:
    """Only the sum is known then: what one task may have and has not opened hides what another has too many."""
    outcomes = [run(replace(lost_control_connections(seed), shows_addresses=False)) for seed in range(6)]
    assert "budget" in {outcome.promise for outcome in outcomes}
    assert max(outcome.most_connections for outcome in outcomes) <= lost_control_connections(0).budget


def test_autoscaling_from_two_tasks_to_ten_and_back_keeps_every_promise() -> None:
    """Eight tasks come one after the other while everybody is hungry, and leave again; nothing is lost on the way."""
    hungry = [Fault(0.0, Kind.DEMAND, task, amount=40) for task in range(2)]
    come = [Fault(1.0 + index, Kind.START_TASK) for index in range(8)]
    work = [Fault(1.6 + index, Kind.DEMAND, 2 + index, amount=40) for index in range(8)]
    leave = [Fault(14.0 + index, Kind.STOP_TASK, 2) for index in range(8)]
    faults = tuple(sorted(hungry + come + work + leave, key=lambda fault: fault.at))
    outcome = run(Plan(7, tasks=2, most_tasks=10, floor=2, slots=30, faults=faults, faults_seconds=24.0))
    assert not outcome.broken, f"\n{shortest(outcome)}"


def test_the_same_seed_is_the_same_world() -> None:
    """A printed seed is enough to see a failure again."""
    assert run(plan_of(3)) == run(plan_of(3))


def test_time_lines_name_what_happened_to_whom() -> None:
    """The time line of a world has each fault with its second and its task."""
    plan = replace(plan_of(1), faults=(Fault(2.5, Kind.KILL_AGENT, 1),), faults_seconds=5.0)
    assert "  2.500 s  task 1: kill the agent" in str(run(plan)).splitlines()


FAULTS = st.builds(
    Fault,
    at=st.integers(0, 79).map(lambda quarter: quarter / 4),
    kind=st.sampled_from(sorted(set(Kind) - {Kind.PARTITION, Kind.VANISH}, key=lambda kind: kind.value)),
    task=st.integers(0, 3),
    seconds=st.sampled_from((0.0, 0.5, 3.0)),
    amount=st.integers(0, 40),
)


@settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))
@given(faults=st.lists(FAULTS, max_size=8), seed=st.integers(0, 1000), processes=st.integers(1, 2))
def test_no_list_of_faults_breaks_a_promise(faults: list[Fault], seed: int, processes: int) -> None:
    """Hypothesis finds no list of faults, and would shorten one that it found, after which a promise is broken."""
    ordered = tuple(sorted(faults, key=lambda fault: fault.at))
    outcome = run(Plan(seed, tasks=2, most_tasks=4, floor=3, slots=8, processes=processes, faults=ordered))
    assert not outcome.broken, f"\n{outcome}"
