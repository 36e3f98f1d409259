"""Where the decisions of a whole fleet lead to: to each its fair share, and then to rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.agent.budget_share import fair_shares, tolerance

from .decided_fleet import DecidedFleet

ARRIVE_SECONDS = 12.0  # the hold window of a fleet at rest, and what the moves take


def is_fair(fleet: DecidedFleet) -> bool:
    """Whether each task has its share of what all of them want, or as good as that."""
    floor = fleet.tasks[0].state.terms.pools_floor
    wants = {task.process_id: max(0, sum(task.demands.values()) - floor) for task in fleet.tasks}
    shares = fair_shares(wants, fleet.slots)
    return all(
        abs(len(task.held) - shares[task.process_id]) <= tolerance(wants[task.process_id]) for task in fleet.tasks
    )


@settings(max_examples=8)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=10), st.integers(1, 60))
def test_constant_demand_comes_to_rest_at_the_fair_shares(demands: list[int], slots: int) -> None:
    """Whatever each task wants, all have their shares within a bounded time, and then no slot moves any more."""
    fleet = DecidedFleet.of(len(demands), slots)
    fleet.demand(*demands)
    fleet.run(ARRIVE_SECONDS)
    assert is_fair(fleet)
    moves = fleet.moves
    fleet.run(15.0)
    assert fleet.moves == moves


@settings(max_examples=5)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.lists(st.integers(1, 60), min_size=6, max_size=6))
def test_shares_follow_when_the_clients_change(before: Sequence[int], after: Sequence[int]) -> None:
    """A fleet that had come to rest does so again with other demands."""
    fleet = DecidedFleet.of(len(before), 40)
    fleet.demand(*before)
    fleet.run(ARRIVE_SECONDS)
    fleet.demand(*after[: len(before)])
    fleet.run(2 * ARRIVE_SECONDS)
    assert is_fair(fleet)


@pytest.mark.parametrize("demands", [(90, 10), (30, 28), (40, 12, 5, 25, 18, 7), (26, 26)])
def test_slots_do_not_flap_under_a_noisy_demand(demands: tuple[int, ...]) -> None:
    """Demands that vary by a fifth at each look move hardly any slot in a minute."""
    fleet = DecidedFleet.of(len(demands), 50, noise=0.2)
    fleet.demand(*demands)
    fleet.run(2 * ARRIVE_SECONDS)
    moves = fleet.moves
    fleet.run(60.0)
    assert fleet.moves - moves <= 6


def test_burst_gets_what_is_free_within_a_second() -> None:
    """A task whose clients come all at once holds the free slots before a second is over."""
    fleet = DecidedFleet.of(4, 40)
    fleet.demand(1, 1, 1, 1)
    fleet.run(5.0)
    fleet.demand(100, 1, 1, 1)
    fleet.run(0.9)
    assert fleet.held == [40, 0, 0, 0]


def test_hungry_task_gets_its_share_of_what_others_hold() -> None:
    """A fleet that has given everything to one task takes its part back for another within seconds."""
    fleet = DecidedFleet.of(2, 40)
    fleet.demand(100, 0)
    fleet.run(5.0)
    assert fleet.held == [40, 0]
    fleet.demand(100, 100)
    fleet.run(3.0)
    assert fleet.held == [20, 20]


def test_fleet_without_clients_gives_everything_back() -> None:
    """Once nobody wants anything, all slots are free and, with pools asleep, no control connection is open."""
    fleet = DecidedFleet.of(5, 40)
    fleet.demand(20, 20, 20, 20, 20)
    fleet.run(5.0)
    fleet.demand(0, 0, 0, 0, 0)
    fleet.run(12.0)
    assert fleet.held == [0] * 5
    for task in fleet.tasks:
        task.servers = dict.fromkeys(task.servers, 0)  # PgBouncer's idle timeout
    fleet.run(2.0)
    assert not any(task.is_connected for task in fleet.tasks)


def test_task_whose_agent_hangs_does_not_keep_slots_from_others() -> None:
    """What a hungry task leaves free for long goes to the others, and it gets its share again when it is back."""
    fleet = DecidedFleet.of(3, 30)
    fleet.tasks[2].is_hung = fleet.tasks[2].is_connected = True
    fleet.tasks[2].missing = 50
    fleet.demand(50, 50, 50)
    fleet.run(10.0)
    assert fleet.held == [15, 15, 0]
    moves = fleet.moves
    fleet.run(10.0)
    assert fleet.moves == moves
    fleet.tasks[2].is_hung = False
    fleet.run(10.0)
    assert fleet.held == [10, 10, 10]


def test_pools_of_a_task_share_what_it_holds() -> None:
    """Clients that move from one pool of a task to another take the connections along, and a minute's noise few."""
    fleet = DecidedFleet.of(2, 40, floor=8, pools=4, noise=0.1)
    fleet.demand([30, 1, 1, 1], [5, 5, 5, 5])
    fleet.run(ARRIVE_SECONDS)
    task = fleet.tasks[0]
    first, second, *_ = task.limits
    assert task.limits[first] >= 25
    fleet.demand([1, 30, 1, 1], [5, 5, 5, 5])
    fleet.run(ARRIVE_SECONDS)
    assert task.limits[second] >= 25
    assert task.limits[first] <= 5
    reloads = task.reloads
    fleet.run(60.0)
    assert task.reloads - reloads <= 10


def test_quiet_fleet_hardly_asks_the_database() -> None:
    """Once all have what they want, each task asks at most twice a second, and rarely for all of the fleet."""
    fleet = DecidedFleet.of(4, 40)
    fleet.demand(8, 8, 8, 8)
    fleet.run(5.0)
    for task in fleet.tasks:
        task.looks = task.views = 0
    fleet.run(60.0)
    assert all(task.looks <= 2 * 60 for task in fleet.tasks)
    assert all(task.views <= 60 / 4 for task in fleet.tasks)
