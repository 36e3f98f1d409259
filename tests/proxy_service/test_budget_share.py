"""How slots are split among tasks, and a task's connections among its pools: what must hold for any numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse
from emberpool_proxy.agent.budget_share import aim, divide, fair_shares, share_out, split, tolerance

A, B, C = (PoolKey(0, name) for name in "abc")
POOLS = (A, B, C, PoolKey(1, "a"))

weights = st.dictionaries(st.integers(1, 50), st.integers(0, 500), min_size=1, max_size=12)
totals = st.integers(0, 600)
pool_demands = st.dictionaries(st.sampled_from(POOLS), st.integers(1, 80), min_size=1)


@st.composite
def pool_uses(draw: st.DrawFn) -> dict[PoolKey, PoolUse]:
    """Pools in any state, those that are shrinking or settling included."""
    keys = draw(st.lists(st.sampled_from(POOLS), min_size=1, unique=True))
    small = st.integers(0, 40)
    return {
        key: PoolUse(draw(st.integers(1, 40)), draw(small), draw(small), draw(small), is_settling=draw(st.booleans()))
        for key in keys
    }


@given(totals, weights)
def test_split_hands_out_everything_in_proportion(total: int, weights: dict[int, int]) -> None:
    """The parts come to the total, and each is less than one away from its exact part."""
    parts = split(total, weights)
    whole = sum(weights.values())
    assert sum(parts.values()) == (total if whole else 0)
    for key, weight in weights.items():
        assert not whole or abs(parts[key] - total * weight / whole) < 1


@given(totals, weights)
def test_shares_use_all_slots_that_anybody_wants(slots: int, demands: dict[int, int]) -> None:
    """Nobody gets more than it wants, nobody who wants some gets none, and none is left while somebody wants more."""
    shares = fair_shares(demands, slots)
    assert sum(shares.values()) == min(slots, sum(demands.values()))
    assert all(shares[key] <= demand for key, demand in demands.items())
    if slots >= len(demands):
        assert all(shares[key] >= min(1, demand) for key, demand in demands.items())


@given(totals, weights, st.randoms())
def test_all_tasks_come_to_the_same_shares(slots: int, demands: dict[int, int], order: random.Random) -> None:
    """The order in which the database tells of the tasks plays no part."""
    shuffled = list(demands.items())
    order.shuffle(shuffled)
    assert fair_shares(dict(shuffled), slots) == fair_shares(demands, slots)


@given(totals, weights, st.integers(1, 100))
def test_who_wants_more_never_gets_less(slots: int, demands: dict[int, int], more: int) -> None:
    """Shares grow with the demand, compared with others' and with its own of before."""
    shares = fair_shares(demands, slots)
    by_demand = sorted(demands, key=lambda key: (demands[key], shares[key]))
    assert [shares[key] for key in by_demand] == sorted(shares.values())
    key = min(demands)
    assert fair_shares({**demands, key: demands[key] + more}, slots)[key] >= shares[key]


@given(totals, pool_demands)
def test_pools_get_what_they_want_before_anything_is_spread(total: int, demands: dict[PoolKey, int]) -> None:
    """All of the total is in use, each pool has at least one, and none lacks while another has more than it wants."""
    shares = share_out(total, demands)
    assert sum(shares.values()) == max(total, len(demands))
    assert min(shares.values()) >= 1
    if any(shares[key] < demand for key, demand in demands.items()):
        assert all(shares[key] <= demand for key, demand in demands.items())


@given(totals, pool_demands, st.data())
def test_limits_stay_once_they_are_right(total: int, demands: dict[PoolKey, int], data: st.DataObject) -> None:
    """What the limits are to come to is reached: from there the next look changes nothing."""
    limits = {key: data.draw(st.integers(1, 80)) for key in demands}
    target = aim(total, limits, demands)
    assert sum(target.values()) == max(total, len(demands))
    assert aim(total, target, demands) == target


def test_limits_stay_while_nothing_lacks() -> None:
    """A pool that wants less than it may have keeps its limit while no other lacks any."""
    assert aim(20, {A: 15, B: 5}, {A: 2, B: 5}) == {A: 15, B: 5}


def test_limits_follow_the_clients_that_wait() -> None:
    """A pool that lacks connections gets those that another does not need."""
    assert aim(20, {A: 15, B: 5}, {A: 2, B: 9}) == share_out(20, {A: 2, B: 9})


def test_small_differences_move_no_connections() -> None:
    """While both lack connections, a few more clients here or there close none."""
    limits = {A: 50, B: 50}
    assert aim(100, limits, {A: 104, B: 100}) == limits
    assert aim(100, limits, {A: 200, B: 100})[A] - 50 >= tolerance(50)


@given(pool_uses(), st.integers(1, 120), st.integers(0, 20), st.data())
def test_limits_are_raised_only_into_room(
    pools: Mapping[PoolKey, PoolUse], total: int, lingering: int, data: st.DataObject
) -> None:
    """Whatever is open or allowed counts before a limit is raised, and a pool that settles is not raised at all."""
    demands = {key: data.draw(st.integers(1, 60)) for key in pools}
    division = divide(total, pools, demands, lingering)
    in_force = sum(max(use.limit, use.servers) for use in pools.values()) + lingering
    after = sum(max(division.limits[key], use.limit, use.servers) for key, use in pools.items()) + lingering
    assert after <= max(total, in_force)
    assert sum(division.limits.values()) <= max(total, sum(use.limit for use in pools.values()), len(pools))
    for key, use in pools.items():
        assert division.limits[key] >= 1
        assert not use.is_settling or division.limits[key] <= use.limit
        assert (key in division.shrink) == (use.servers > division.limits[key])


@settings(max_examples=50)
@given(pool_uses(), st.integers(4, 120), st.data())
def test_division_arrives(pools: dict[PoolKey, PoolUse], total: int, data: st.DataObject) -> None:
    """With PgBouncers that shrink, a few steps bring the limits to the whole total."""
    demands = {key: data.draw(st.integers(1, 60)) for key in pools}
    for _ in range(4):
        division = divide(total, pools, demands, lingering=0)
        pools = {
            key: PoolUse(limit, min(use.servers, limit), 0, 0)
            for (key, use), limit in zip(pools.items(), division.limits.values(), strict=True)
        }
    assert sum(use.limit for use in pools.values()) == total
    assert divide(total, pools, demands, lingering=0).limits == {key: use.limit for key, use in pools.items()}


def test_limit_that_was_to_shrink_a_pool_rises_again_without_room() -> None:
    """A pool whose connections are wanted again keeps those that are still open."""
    pools = {A: PoolUse(3, 10, 10, 5), B: PoolUse(4, 0, 0, 0)}
    # B's four are free for A only when B is known to have taken over its limit.
    assert divide(14, pools, {A: 20, B: 1}, lingering=0).limits == {A: 10, B: 1}
