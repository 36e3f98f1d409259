"""How fast a pool closes what is too many: PgBouncer's own arithmetic, and what we make of it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.agent.budget_closing import CLOSE_SECONDS, LONGEST_LIFETIME_SECONDS, Excess, closing

counts = st.integers(1, 2_000)


@st.composite
def busy_pools(draw: st.DrawFn) -> Excess:
    limit = draw(counts)
    return Excess(limit, limit + draw(counts), 0)


def closes_within(seconds: float, lifetime: float, pool_size: int) -> int:
    """How many free connections PgBouncer closes in so long, as its life_over() says: the first one at once."""
    return 1 + math.floor(seconds / (lifetime / pool_size) * (1 - 1e-9))


@given(st.dictionaries(st.sampled_from("abcdef"), busy_pools(), min_size=1))
def test_no_pool_closes_more_than_it_has_too_many(pools: dict[str, Excess]) -> None:
    """Until the time is over that all of them take, no pool can fall below its limit."""
    lifetime, sizes = closing(pools)
    assert CLOSE_SECONDS <= lifetime <= LONGEST_LIFETIME_SECONDS
    for entry, pool in pools.items():
        assert sizes[entry] >= 1
        assert closes_within(CLOSE_SECONDS, lifetime, sizes[entry]) <= max(1, pool.servers - pool.limit)


@given(busy_pools())
def test_all_that_are_too_many_close_soon(pool: Excess) -> None:
    """The rest of each look is a small part of what was there, however many there were."""
    looks = 0
    while pool.servers > pool.limit:
        lifetime, sizes = closing({"it": pool})
        closed = closes_within(CLOSE_SECONDS, lifetime, sizes["it"])
        pool = Excess(pool.limit, max(pool.limit, pool.servers - closed), 0)
        looks += 1
        assert looks <= 4
    assert pool.servers == pool.limit


def test_idle_connections_above_the_limit_are_closed_by_the_pool_size() -> None:
    """A pool size below the limit would close idle connections that the pool may have."""
    lifetime, sizes = closing({"idle": Excess(20, 22, 1), "busy": Excess(2, 40, 0)})
    assert sizes["idle"] >= 20
    assert lifetime == LONGEST_LIFETIME_SECONDS
    assert Excess(20, 22, 2).is_idle_enough
    assert not Excess(20, 22, 1).is_idle_enough
