"""Decisions that are wrong on purpose: small wrappers around the real step, each with one rule of it broken."""

from __future__ import annotations

import random
from dataclasses import replace

from emberpool_proxy.agent import decide
from emberpool_proxy.agent.budget_reading import PoolKey, Reading
from emberpool_proxy.agent.decide import Decision, State

Stepped = tuple[State, Decision]


def gives_before_the_count_is_down(state: State, reading: Reading) -> Stepped:
    """Slots are released in the step that lowers the limits, whatever is still open."""
    state, decision = decide.step(state, reading)
    lowered = sum(
        max(0, use.limit - decision.limits[key]) for key, use in reading.pools.items() if key in decision.limits
    )
    raised = sum(max(0, limit - reading.pools[key].limit) for key, limit in decision.limits.items())
    first = sorted(reading.held - decision.give, reverse=True)[: max(0, lowered - raised)]
    return state, replace(decision, give=decision.give | frozenset(first))


def raises_before_it_has_taken(state: State, reading: Reading) -> Stepped:
    """Limits grow in the step that asks for the slots."""
    state, decision = decide.step(state, reading)
    return state, replace(decision, limits=_raised(decision.limits, reading, decision.take_count))


def uses_slots_before_they_settle(state: State, reading: Reading) -> Stepped:
    """All held slots are used at once: somebody who lost them may not know it yet."""
    state, decision = decide.step(state, reading)
    if decision.shrink or not any(use.waiting for use in reading.pools.values()):
        return state, decision
    unused = len(reading.held - decision.give) + state.terms.pools_floor - sum(decision.limits.values())
    return state, replace(decision, limits=_raised(decision.limits, reading, max(0, unused)))


def does_not_count_what_the_database_counts(state: State, reading: Reading) -> Stepped:
    """The connections of those who lost their slots are not looked at."""
    if reading.fleet:
        reading = replace(reading, fleet=replace(reading.fleet, pool_connections=0, others_excess=0))
    return decide.step(state, reading)


def keeps_its_limits_when_the_connection_is_lost(state: State, reading: Reading) -> Stepped:
    """The loss of the slots changes nothing for the pools."""
    state, decision = decide.step(state, reading)
    if reading.is_connected or not any(use.waiting for use in reading.pools.values()):
        return state, decision
    return state, replace(decision, limits=_raised(decision.limits, reading, 6), shrink=frozenset())


def knows_nobody_else(state: State, reading: Reading) -> Stepped:
    """Others' hunger is not looked at."""
    if reading.fleet:
        others = tuple(replace(session, missing=0) for session in reading.fleet.others)
        reading = replace(reading, fleet=replace(reading.fleet, others=others), is_anybody_hungry=False)
    return decide.step(state, reading)


def never_takes(state: State, reading: Reading) -> Stepped:
    """Slots are for the others."""
    state, decision = decide.step(state, reading)
    return state, replace(decision, take=(), take_count=0)


def never_gives(state: State, reading: Reading) -> Stepped:
    """What is held stays held."""
    state, decision = decide.step(state, reading)
    return state, replace(decision, give=frozenset())


def stays_connected(state: State, reading: Reading) -> Stepped:
    """The control connection is kept by a task that has nothing to do."""
    state, decision = decide.step(state, reading)
    return state, replace(decision, wants_connection=True)


def changes_its_mind(state: State, reading: Reading) -> Stepped:
    """What it says it lacks is wrong by a lot, and another number each second."""
    chance = random.Random(state.seed + int(reading.now))
    state, decision = decide.step(state, reading)
    return state, replace(decision, missing=chance.choice((1, 1000))) if decision.missing else decision


def _raised(limits: dict[PoolKey, int], reading: Reading, by: int) -> dict[PoolKey, int]:
    """Add to the limit of the pool with the longest line."""
    if not limits or not by:
        return limits
    longest = max(limits, key=lambda key: reading.pools[key].waiting if key in reading.pools else -1)
    return {**limits, longest: limits[longest] + by}
