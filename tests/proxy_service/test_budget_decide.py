"""What one task decides about its limits and slots: what must hold whatever it reads, and what follows from what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.agent.budget_demand import HOLD_SECONDS
from emberpool_proxy.agent.budget_reading import FleetView, PoolKey, PoolUse, Reading, Session
from emberpool_proxy.agent.budget_usable import EXCESS_SECONDS, SETTLE_SECONDS
from emberpool_proxy.agent.decide import Decision, State, Terms, step

A, B = PoolKey(0, "a"), PoolKey(0, "b")
ME, OTHER = 100, 200
SLOTS = 20
small = st.integers(0, 12)


@st.composite
def views(draw: st.DrawFn, at: float) -> FleetView:
    """Any answer of the database."""
    slots = draw(st.integers(0, SLOTS))
    free = tuple(sorted(draw(st.sets(st.integers(0, SLOTS - 1)))))
    others = draw(st.lists(st.builds(Session, st.integers(101, 110), small, small, small), max_size=4, unique=True))
    return FleetView(
        at - draw(st.floats(0, 2)), Session(ME), tuple(others), free, slots, draw(st.integers(0, 60)), SLOTS, slots, 9
    )


@st.composite
def readings(draw: st.DrawFn, now: float) -> Reading:
    """Anything that can be read, however little it fits to what was read before."""
    uses = st.builds(PoolUse, st.integers(1, 20), small, small, small, st.floats(0, 1), st.booleans())
    return Reading(
        now=now,
        pools=draw(st.dictionaries(st.sampled_from([A, B]), uses)),
        held=frozenset(draw(st.sets(st.integers(0, SLOTS - 1)))),
        lingering=draw(st.integers(0, 5)),
        is_connected=draw(st.integers(0, 5)) > 0,
        is_draining=draw(st.booleans()),
        fleet=draw(st.none() | views(now)),
        taken_now=draw(st.none() | st.integers(0, 5)),
        is_anybody_hungry=draw(st.none() | st.booleans()),
    )


@settings(max_examples=60)
@given(st.data(), st.integers(0, SLOTS), st.integers(3, 8))
def test_no_reading_makes_a_task_exceed_what_it_holds(data: st.DataObject, shared_slots: int, floor: int) -> None:
    """Limits rise only to what is held, and a slot is released only when two readings in a row do not need it."""
    terms = Terms(floor, shared_slots, pools=2)
    state, now, before = State(terms), 0.0, 0
    for _ in range(data.draw(st.integers(1, 6))):
        now += data.draw(st.floats(0.01, 20))
        reading = data.draw(readings(now))
        state, decision = step(state, reading)
        held = reading.held if reading.is_connected else frozenset()
        check_limits(reading, decision, terms.pools_floor + len(held - decision.give))
        in_force = sum(max(use.limit, use.servers) for use in reading.pools.values()) + reading.lingering
        assert decision.give <= held
        if decision.give:
            assert max(in_force, before) <= terms.pools_floor + len(held - decision.give)
        assert set(decision.take) <= set(reading.fleet.free if reading.fleet and reading.is_connected else ())
        assert 0 <= decision.take_count <= len(decision.take)
        assert 0 <= decision.wait_seconds <= terms.tick_seconds
        assert decision.wants_connection or not held or shared_slots == 0
        before = in_force


def check_limits(reading: Reading, decision: Decision, allowed: int) -> None:
    """Assert what holds for the limits of any decision."""
    assert decision.limits.keys() == reading.pools.keys()
    in_force = sum(max(use.limit, use.servers) for use in reading.pools.values()) + reading.lingering
    # The limits in force count until PgBouncer has been told.
    pools = reading.pools.items()
    after = sum(max(decision.limits[key], use.limit, use.servers) for key, use in pools) + reading.lingering
    assert after <= max(in_force, allowed)
    for key, use in reading.pools.items():
        assert decision.limits[key] >= 1
        assert not use.is_settling or decision.limits[key] <= use.limit


@dataclass
class Alone:
    """One task with one pool, whose clients want `demand` connections, and a database in which one other may be."""

    state: State
    demand: int = 0
    limit: int = 1
    servers: int = 0
    held: frozenset[int] = frozenset()
    others: tuple[Session, ...] = ()
    slots: int = SLOTS
    foreign: int = 0  # connections that nobody's slots explain
    now: float = 100.0
    is_connected: bool = True
    is_draining: bool = False
    keeps_servers: bool = False  # its transactions are too long for a pool to shrink

    def turn(self, seconds: float = 0.05, *, taken_now: int | None = None, with_view: bool = True) -> Decision:
        """Take a step and do what it says; take what it wants."""
        self.now += seconds
        self.servers = max(self.servers, min(self.limit, self.demand))
        busy = min(self.servers, self.demand)
        use = PoolUse(self.limit, self.servers, busy, self.demand - busy, 0.1 if self.demand > busy else 0.0)
        reading = Reading(
            self.now,
            {A: use},
            self.held,
            is_connected=self.is_connected,
            is_draining=self.is_draining,
            fleet=self.view() if with_view else None,
            taken_now=taken_now,
        )
        self.state, decision = step(self.state, reading)
        self.limit = decision.limits[A]
        if not self.keeps_servers:
            self.servers = min(self.servers, self.limit)
        self.held = self.held - decision.give | frozenset(decision.take[: decision.take_count])
        return decision

    def turns(self, seconds: float) -> None:
        """Take steps for so long."""
        end = self.now + seconds
        while self.now < end:
            self.turn()

    def view(self) -> FleetView:
        """Return what the database says."""
        free = tuple(sorted(set(range(self.slots - sum(other.slots for other in self.others))) - self.held))
        count = self.servers + self.foreign + sum(other.slots + other.floor for other in self.others)
        return FleetView(self.now, Session(ME, len(self.held)), self.others, free, self.slots, count, SLOTS, 99, 99)


def task(demand: int = 0, held: frozenset[int] = frozenset(), *, foreign: int = 0, is_draining: bool = False) -> Alone:
    """Return a task with a floor of 2, after its first step."""
    alone = Alone(State(Terms(2, SLOTS)), demand, held=held, foreign=foreign, is_draining=is_draining)
    alone.turn()
    return alone


def test_slot_is_used_only_after_it_has_settled() -> None:
    """The limit stays until whoever held the slots before has had the time to lower its own."""
    alone = task(demand=10)
    assert (alone.limit, len(alone.held)) == (2, 8)
    first_seen = alone.now + 0.05
    while alone.limit == 2:
        alone.turn()
    assert alone.limit == 10
    assert alone.now - first_seen >= SETTLE_SECONDS


def test_slots_of_the_agent_before_are_in_use_at_once() -> None:
    """A new agent that has inherited slots leaves the limit where it is."""
    alone = Alone(State(Terms(2, SLOTS)), demand=10, limit=10, servers=10, held=frozenset(range(8)))
    alone.turn()
    assert alone.limit == 10


def test_limit_waits_for_connections_that_nobody_explains() -> None:
    """Slots that were taken count only as far as the database's own count of connections allows."""
    alone = task(demand=10, foreign=5)
    alone.turns(1.0)
    assert (alone.limit, len(alone.held)) == (10 - 5, 8)
    assert alone.turn().excess == 5
    alone.foreign = 0
    alone.turns(0.5)
    assert alone.limit == 10


def test_fleet_makes_room_for_others_with_the_role_of_the_pool() -> None:
    """Connections that are not the fleet's and stay are counted as the fleet's: this task gives up its part of them."""
    alone = task(demand=10)
    alone.turns(1.0)
    alone.others = (Session(OTHER, slots=8, floor=2),)
    alone.foreign = 4
    alone.turns(EXCESS_SECONDS - 0.5)
    assert alone.limit == 10  # they may be on their way out
    alone.turns(1.0)
    alone.foreign = 4 - 2  # as much less as the other has given up for its part
    alone.turns(EXCESS_SECONDS + 1.0)
    assert (alone.limit, len(alone.held)) == (8, 8)
    alone.foreign = 0
    alone.turns(0.5)
    assert alone.limit == 10


def test_lost_control_connection_lowers_the_limit_to_the_floor() -> None:
    """Without its locks a task may have its floor, and closes what it has beyond."""
    alone = task(demand=10)
    alone.turns(1.0)
    alone.is_connected, alone.held = False, frozenset()
    decision = alone.turn()
    assert decision.limits == {A: 2}
    assert decision.shrink == {A}
    assert decision.wants_connection


def test_slots_are_kept_until_the_pool_has_shrunk() -> None:
    """A limit alone releases nothing: the connections must be gone, and at two readings in a row."""
    alone = task(demand=10)
    alone.turns(1.0)
    alone.demand, alone.keeps_servers = 0, True
    alone.turns(HOLD_SECONDS + 1.0)
    assert (alone.limit, len(alone.held), alone.servers) == (2, 8, 10)
    alone.servers = 4
    alone.turn()
    assert len(alone.held) == 8
    alone.turn()
    assert len(alone.held) == 2
    alone.servers = 0
    alone.turns(0.2)
    assert alone.held == frozenset()


def test_slots_are_kept_while_the_demand_only_dips() -> None:
    """Clients that pause for less than the hold window find their connections again."""
    alone = task(demand=10)
    alone.turns(2.0)
    for _ in range(5):
        alone.demand = 0
        alone.turns(HOLD_SECONDS / 2 - 0.5)
        alone.demand = 10
        alone.turn()
        assert len(alone.held) == 8


def test_asleep_pool_needs_no_control_connection() -> None:
    """A task whose pool has no connection and no client lets the database pause."""
    alone = task(demand=3)
    alone.turns(1.0)
    alone.demand = 0
    alone.turns(HOLD_SECONDS + 1.0)
    assert alone.turn().wants_connection  # its idle connections are there still
    alone.servers = 0
    decision = alone.turn()
    assert (decision.wants_connection, decision.wait_seconds, alone.held) == (False, 1.0, frozenset())


def test_slots_whose_numbers_are_gone_are_exchanged_without_a_dip() -> None:
    """When fewer slots are promised, lower free ones are taken first and replace those with too high a number."""
    alone = task(demand=6, held=frozenset({15, 16, 17, 18}))
    alone.turns(1.0)
    alone.slots = 10
    for _ in range(20):
        alone.turn()
        assert alone.limit == 6
    assert len(alone.held) == 4
    assert max(alone.held) < 10


def test_slots_whose_numbers_are_gone_are_given_whatever_the_demand() -> None:
    """When fewer slots are promised and none is free, those with too high a number go all the same."""
    alone = task(demand=12)
    alone.turns(1.0)
    alone.held = frozenset(range(10, 20))
    alone.slots, alone.others = 10, (Session(OTHER, slots=10, floor=2),)
    alone.turns(1.0)
    assert alone.held == frozenset()
    assert alone.limit == 2


def test_somebody_who_was_faster_is_not_raced_at_once() -> None:
    """A take that got nothing is not repeated in the next step."""
    alone = task()
    alone.demand = 10
    decision = alone.turn(seconds=1.0)
    assert decision.take_count == 8
    alone.held = frozenset()
    assert alone.turn(taken_now=0).take_count == 0
    assert alone.turn(seconds=1.5).take_count == 8


def test_nothing_is_taken_on_an_old_view() -> None:
    """Which slots are free is asked first."""
    alone = task()
    alone.demand = 10
    decision = alone.turn(seconds=1.0, with_view=False)
    assert decision.take_count == 0
    assert decision.wants_fleet
    assert decision.missing == 8


def test_draining_task_gives_slots_back_as_its_clients_leave() -> None:
    """A task that drains holds on to nothing, and takes what its last clients wait for."""
    alone = task(demand=10, is_draining=True)
    alone.turns(1.0)
    assert alone.limit == 10
    for demand in (7, 4, 0):
        alone.demand = demand
        alone.turns(1.5)
        assert len(alone.held) == max(0, demand - 2)


def test_pool_that_cannot_be_asked_keeps_what_it_had() -> None:
    """A console that does not answer says nothing about its pool: neither slots nor limits of others rely on it."""
    terms = Terms(4, SLOTS, pools=2)
    held = frozenset(range(6))
    pools = {A: PoolUse(1, 1, 0, 0), B: PoolUse(8, 8, 8, 0)}
    state, _ = step(State(terms), Reading(1.0, pools, held, is_connected=True))
    busy = {A: PoolUse(1, 1, 1, 9, 1.0)}
    for second in range(2, 60):
        state, decision = step(state, Reading(float(second), busy, held, is_connected=True))
        assert decision.limits == {A: 1}
        assert decision.give == frozenset()


@pytest.mark.parametrize("pools", [1, 2])
def test_task_that_is_alone_shares_out_everything(pools: int) -> None:
    """Without slots there is nothing to ask the database, and all of the budget is in the limits."""
    keys = [A, B][:pools]
    state = State(Terms(20, 0, pools, is_alone=True))
    state, decision = step(state, Reading(1.0, {key: PoolUse(1, 1, 1, 50, 1.0) for key in keys}))
    assert sum(decision.limits.values()) == 20
    assert not decision.wants_connection


def test_one_connection_is_spare_for_each_pool_but_one() -> None:
    """A PgBouncer that starts again opens one connection a pool while those of before are still there."""
    state = State(Terms(7, 0, pools=4))
    keys = [PoolKey(process, entry) for process in (0, 1) for entry in "ab"]
    _, decision = step(state, Reading(1.0, {key: PoolUse(1, 1, 1, 50, 1.0) for key in keys}))
    assert sum(decision.limits.values()) == 7 - 3


def test_quiet_holder_asks_the_cheap_question() -> None:
    """A task that has what it needs asks only whether anybody is hungry, and looks closely when somebody is."""
    alone = task(demand=10)
    alone.turns(1.5)
    decision = Decision({})
    while not decision.wants_hunger:
        decision = alone.turn()
        assert not decision.wants_fleet
    use = {A: PoolUse(10, 10, 10, 0)}
    reading = Reading(alone.now + 0.5, use, alone.held, is_connected=True, is_anybody_hungry=True)
    _, decision = step(alone.state, replace(reading, fleet=replace(alone.view(), at=alone.state.usable.view_at)))
    assert decision.wants_fleet


def test_view_that_came_late_is_used_once() -> None:
    """A database that takes a second to answer starves nobody; what it said is tried once."""
    pools = {PoolKey(0, "app"): PoolUse(limit=2, servers=2, busy=2, waiting=6, max_wait_seconds=1.0)}
    view = FleetView(0.5, Session(1, 0, 2), (), tuple(range(10)), 10, 2, 10, 10, 10)
    state, first = step(State(Terms(2, 10)), Reading(1.5, pools, is_connected=True, fleet=view))
    assert first.take_count == 6
    _, second = step(replace(state, asked_at=0.0), Reading(2.5, pools, is_connected=True, fleet=view))
    assert second.take_count == 0
