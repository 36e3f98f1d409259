"""Decides how many server connections this task may have, and which slots it takes and gives back. Pure.

A step goes from what is in force to what is wanted in an order that keeps the fleet within its budget at each moment:
limits are raised only to slots that are usable (held, settled, and within the database's own count), and a slot is
given back only when neither a limit in force nor an open connection needs it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emberpool_proxy.agent import budget_demand, budget_pace, budget_rivals, budget_usable
from emberpool_proxy.agent.budget_demand import Demand
from emberpool_proxy.agent.budget_pace import FAST_SECONDS, FRESH_SECONDS, NEVER, Mood, Pace
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse, Reading
from emberpool_proxy.agent.budget_rivals import Rivals
from emberpool_proxy.agent.budget_share import Division, divide, tolerance
from emberpool_proxy.agent.budget_usable import Usable

SURPLUS_SECONDS = 0.1  # what is above our share for a shorter time may be a slot on its way to somebody else
EXCHANGE_SECONDS = 0.5  # longest time in which slots with too high a number are kept for those that replace them
LONGEST_BACKOFF_SECONDS = 1.0
WEIGHT_STEP = 4  # what is published changes by more than a fourth at once: every change makes others move
WEIGHT_SECONDS = 5.0  # a smaller change is published when it has lasted for so long
MOST_MISSING = 100_000


@dataclass(frozen=True, slots=True)
class Terms:
    """What does not change while the task runs. Counts; `pools` is processes x entries, running or not."""

    floor: int
    shared_slots: int
    pools: int = 1
    is_alone: bool = False  # the floor is the whole budget: nothing is kept back for a crash of one pool of several
    most_tasks_alive: int = 0  # floors of tasks without a control connection are expected in the count; 0: none are
    tick_seconds: float = 1.0  # between two steps when nothing happens

    @property
    def pools_floor(self) -> int:
        """What the pools may always have: a pool that starts again has one before the connections of old are gone."""
        return self.floor if self.is_alone else max(self.pools, self.floor - (self.pools - 1))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: limits (lower ones first), give, take, publish, read, wait."""

    limits: dict[PoolKey, int]  # what PgBouncer's limits must be; every pool of the reading
    shrink: frozenset[PoolKey] = frozenset()  # pools with more servers than their limit: close them as they come free
    give: frozenset[int] = frozenset()
    take: tuple[int, ...] = ()  # candidates in the order to try
    take_count: int = 0  # stop after so many
    missing: int = 0  # to publish; 0: not hungry
    wants_connection: bool = False  # False: close the control connection (all slots are given)
    wants_fleet: bool = False  # read the fleet's view before the next step
    wait_seconds: float = 0.0  # at most, until the next step
    wants_hunger: bool = False  # ask whether anybody is hungry before the next step; a view answers that, too
    excess: int = 0  # connections that the database counts and nobody's slots explain

    def is_work(self, published: int) -> bool:
        """Say whether the open control connection has something to do; `published`: the missing that others read."""
        return bool(
            not self.wants_connection
            or self.give
            or self.take
            or self.wants_fleet
            or self.wants_hunger
            or self.missing != published
        )


@dataclass(frozen=True, slots=True)
class State:
    """The memory between two steps. What is held at the first of them was inherited, and is usable."""

    terms: Terms
    seed: int = 0  # of the jitter
    steps: int = field(default=0)
    demand: Demand = field(default_factory=Demand)
    usable: Usable = field(default_factory=Usable)
    rivals: Rivals = field(default_factory=Rivals)
    pace: Pace = field(default_factory=Pace)
    pools: Mapping[PoolKey, PoolUse] = field(default_factory=dict)  # as last seen, those that are not seen now as well
    needed: int = 0  # slots that could not be given up at the step before
    weight: int = 0  # slots that others are told that this task wants, held ones included
    weight_differs_since: float | None = None  # from what this task wants, by more than shares may
    is_hungry: bool = False
    has_been_away: bool = False  # others may take this task for one that hangs
    has_new_view: bool = False  # this step is the first that sees the view at hand
    surplus_since: float | None = None  # the first view that showed us above our share
    asked_at: float = NEVER  # the last step that took or gave: older views do not show it
    exchanged: int = 0  # slots that were asked for then in exchange for those with too high a number
    failures: int = 0  # takes in a row that got nothing
    no_take_before: float = NEVER


@dataclass(frozen=True, slots=True)
class Wish:
    """What this task wants of its slots at one moment. Counts of slots."""

    needs: int  # above the floor
    lawful: int  # held, and below the number of slots that there are
    keep: int  # of those

    @property
    def lacks(self) -> int:
        """How many more it could use."""
        return max(0, self.needs - self.lawful)


@dataclass(frozen=True, slots=True)
class Take:
    """Which slots to try, and how many to take."""

    candidates: tuple[int, ...] = ()
    count: int = 0


def step(state: State, reading: Reading) -> tuple[State, Decision]:
    """Return the state after `reading`, and what to do about it."""
    if not reading.is_connected:
        reading = replace(reading, held=frozenset(), fleet=None)
    was_hungry = state.is_hungry
    state = _look(state, reading)
    wish, state = _wish(state, reading)
    take, state = _take(state, reading, wish)
    keep = wish.keep + _kept_for_exchange(state, reading, wish, take)
    division = _divide(state, reading, keep)
    give = _give(state, reading, keep)
    decision = Decision(
        limits=division.limits,
        shrink=division.shrink,
        give=give,
        take=take.candidates,
        take_count=take.count,
        missing=_missing(state, wish, wish.lawful - len(give & _lawful(reading)) + take.count),
        wants_connection=_wants_connection(state, reading),
        excess=state.usable.excess,
    )
    state = _remember(state, reading, decision, max(0, min(take.count, len(reading.held) - wish.lawful)))
    return _pace(state, reading, decision, has_turned_hungry=state.is_hungry and not was_hungry)


def _look(state: State, reading: Reading) -> State:
    """Take in what the reading says, before anything is decided."""
    terms, view = state.terms, reading.fleet
    usable = state.usable if state.steps else Usable(reading.held)
    state = replace(
        state,
        steps=state.steps + 1,
        demand=budget_demand.observe(state.demand, reading.pools, reading.now, _hold_seconds(state, reading)),
        usable=budget_usable.observe(usable, reading, terms.floor, terms.most_tasks_alive),
        pools={**state.pools, **reading.pools} if len(reading.pools) < terms.pools else reading.pools,
    )
    if view is None:
        return replace(state, rivals=Rivals(), has_been_away=False, has_new_view=False)
    if view.at <= usable.view_at:
        return replace(state, has_been_away=False, has_new_view=False)
    look_seconds = budget_pace.look_seconds(_mood(state, reading))
    return replace(
        state,
        rivals=budget_rivals.observe(state.rivals, view, max(len(reading.held), state.weight), look_seconds),
        has_new_view=True,
        has_been_away=state.is_hungry and view.at - usable.view_at >= budget_rivals.patience(look_seconds),
    )


def _hold_seconds(state: State, reading: Reading) -> float:
    if reading.is_draining:
        return budget_demand.HOLD_DRAINING_SECONDS
    is_pressed = reading.is_anybody_hungry or state.rivals.missing
    return budget_demand.HOLD_UNDER_PRESSURE_SECONDS if is_pressed else budget_demand.HOLD_SECONDS


def _lawful(reading: Reading) -> frozenset[int]:
    """Those of our slots that still exist: their number may have been lowered."""
    if reading.fleet is None:
        return reading.held
    return frozenset(number for number in reading.held if number < reading.fleet.slots)


def _wish(state: State, reading: Reading) -> tuple[Wish, State]:
    """Return how many slots are needed and kept: by demand first, then by what is fair to others."""
    needs = max(0, sum(state.demand.by_pool.values()) - state.terms.pools_floor)
    lawful = len(_lawful(reading))
    wish = Wish(needs if state.terms.shared_slots > 0 else 0, lawful, lawful)
    state = _weigh(state, wish, reading.now)
    if lawful and lawful - needs >= tolerance(needs):
        wish = replace(wish, keep=needs)
    if reading.fleet:
        state = replace(state, rivals=budget_rivals.judge(state.rivals, reading.fleet, state.weight, lawful))
    if not state.rivals.surplus:
        return wish, replace(state, surplus_since=None)
    view_at = state.usable.view_at
    since = view_at if state.surplus_since is None else state.surplus_since
    if view_at - since >= SURPLUS_SECONDS:
        wish = replace(wish, keep=min(wish.keep, lawful - state.rivals.surplus))
    return wish, replace(state, surplus_since=since)


def _weigh(state: State, wish: Wish, now: float) -> State:
    """Take in how many slots others are told that this task wants, held ones included.

    Shares are made of it: it must not follow each small change of the demand, or all the others would move, too.
    """
    before, since = state.weight, state.weight_differs_since
    state = replace(state, is_hungry=wish.lacks > 0, weight_differs_since=None)
    if not wish.lacks:
        return replace(state, weight=wish.lawful)
    if state.has_been_away:
        return replace(state, weight=wish.needs + (wish.needs == before))  # any change shows that it is back
    difference = abs(wish.needs - before)
    if before <= wish.lawful or WEIGHT_STEP * difference > before:
        return replace(state, weight=wish.needs)
    if difference <= tolerance(before):
        return state
    since = now if since is None else since
    if now - since < WEIGHT_SECONDS:
        return replace(state, weight_differs_since=since)
    return replace(state, weight=wish.needs)


def _missing(state: State, wish: Wish, held: int) -> int:
    """Return what to publish: with what is held after this step, it comes to the weight."""
    return min(MOST_MISSING, max(0, state.weight - held)) if wish.lacks else 0


def _take(state: State, reading: Reading, wish: Wish) -> tuple[Take, State]:
    """Return what to take now: what is lacking, or while not all can have that, what is fair."""
    state = _back_off(state, reading)
    view = reading.fleet
    if view is None or not wish.lacks or reading.now < state.no_take_before:
        return Take(), state
    # A database that answers slowly shows nothing newer, and a slot that is gone meanwhile is just not got.
    is_fresh = state.has_new_view or view.at > reading.now - FRESH_SECONDS
    if view.at <= state.asked_at or not is_fresh:
        return Take(), state
    count = min(wish.lacks, len(view.free))
    if wish.lacks + state.rivals.missing > len(view.free):
        count = min(count, state.rivals.share - wish.lawful)
    if count <= 0:
        return Take(), state
    # Each task starts elsewhere, so that two that are hungry at once do not race for the same numbers.
    start = _chance(state).randrange(len(view.free))
    return Take(view.free[start:] + view.free[:start], count), state


def _back_off(state: State, reading: Reading) -> State:
    if reading.taken_now is None:
        return state
    if reading.taken_now:
        return replace(state, failures=0)
    failures = min(state.failures + 1, 10)  # somebody was faster with all of them
    pause = min(FAST_SECONDS * 2**failures, LONGEST_BACKOFF_SECONDS) * _chance(state).uniform(0.5, 1.5)
    return replace(state, failures=failures, no_take_before=reading.now + pause)


def _kept_for_exchange(state: State, reading: Reading, wish: Wish, take: Take) -> int:
    """Return how many slots with too high a number back the limits until those that replace them are there."""
    unlawful = len(reading.held) - wish.lawful
    is_asked = state.usable.view_at <= state.asked_at and reading.now - state.asked_at < EXCHANGE_SECONDS
    return min(unlawful, take.count or (state.exchanged if is_asked else 0))


def _divide(state: State, reading: Reading, keep: int) -> Division:
    total = state.terms.pools_floor + min(len(state.usable.slots), keep)
    return divide(total, reading.pools, state.demand.by_pool, reading.lingering + _unseen(state, reading))


def _unseen(state: State, reading: Reading) -> int:
    """Return what pools may have that could not be asked, beyond what is known to linger of them."""
    unseen = sum(max(use.limit, use.servers) for key, use in state.pools.items() if key not in reading.pools)
    return max(0, unseen - reading.lingering)


def _give(state: State, reading: Reading, keep: int) -> frozenset[int]:
    """Return the slots to release: above `keep`, and needed by no limit and no connection at two readings in a row."""
    count = len(reading.held) - max(keep, state.needed, _needed(state, reading))
    lawful = _lawful(reading)
    first = sorted(reading.held, key=lambda number: (number in lawful, number in state.usable.slots, -number))
    return frozenset(first[: max(0, count)])


def _needed(state: State, reading: Reading) -> int:
    """Return how many slots the limits in force and the open connections need."""
    in_use = sum(max(use.limit, use.servers) for use in reading.pools.values())
    return max(0, in_use + reading.lingering + _unseen(state, reading) - state.terms.pools_floor)


def _wants_connection(state: State, reading: Reading) -> bool:
    return state.terms.shared_slots > 0 and (bool(reading.held) or _is_in_use(reading))


def _is_in_use(reading: Reading) -> bool:
    return any(use.servers or use.waiting or use.busy for use in reading.pools.values())


def _remember(state: State, reading: Reading, decision: Decision, exchanged: int) -> State:
    has_moved = bool(decision.take_count or decision.give)
    return replace(
        state,
        usable=budget_usable.pass_on(state.usable, decision.give, _lawful(reading)),
        needed=_needed(state, reading),
        asked_at=reading.now if has_moved else state.asked_at,
        exchanged=exchanged if has_moved else state.exchanged,
    )


def _pace(state: State, reading: Reading, decision: Decision, *, has_turned_hungry: bool) -> tuple[State, Decision]:
    is_news = bool(reading.is_anybody_hungry) and not state.rivals.missing
    is_old = reading.now - state.usable.view_at >= FRESH_SECONDS
    limits = {key: use.limit for key, use in reading.pools.items()}
    mood = replace(
        _mood(state, reading),
        is_moving=bool(decision.shrink or reading.lingering or state.usable.settles_at < math.inf)
        or any(use.is_settling for use in reading.pools.values()),
        is_changing=bool(decision.take_count or decision.give) or decision.limits != limits,
        is_urgent=is_old and (has_turned_hungry or is_news),
        settles_at=state.usable.settles_at,
    )
    pace, look = budget_pace.set_pace(
        state.pace,
        mood,
        state.terms.tick_seconds,
        can_look=reading.is_connected and decision.wants_connection,
    )
    return replace(state, pace=pace), replace(
        decision, wait_seconds=look.wait_seconds, wants_fleet=look.wants_fleet, wants_hunger=look.wants_hunger
    )


def _mood(state: State, reading: Reading) -> Mood:
    return Mood(
        now=reading.now,
        view_at=state.usable.view_at,
        sessions=len(reading.fleet.others) + 1 if reading.fleet else 1,
        is_hungry=state.is_hungry or not state.usable.is_complete,
        is_pressed=bool(reading.held and (reading.is_anybody_hungry or state.rivals.missing)),
        is_short=state.is_hungry and len(reading.held) < state.rivals.share,
        is_holding=bool(reading.held),
        is_in_use=bool(reading.held) or _is_in_use(reading),
        is_answered=reading.is_anybody_hungry is not None,
        chance=_chance(state),
    )


def _chance(state: State) -> random.Random:
    return random.Random(state.seed * 1_000_003 + state.steps)  # noqa: S311 (no secret)
