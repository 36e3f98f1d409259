"""When to look again, and at what: often while something is on its way, hardly ever while nothing happens. Pure."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

FAST_SECONDS = 0.05  # between two steps while something is on its way
BUSY_SECONDS = 0.25  # while there are clients or connections
LIVELY_SECONDS = 1.0  # steps stay fast for so long after something has changed

FRESH_SECONDS = 0.3  # a view of the fleet that is older does not say which slots are free
HUNGRY_LOOK_SECONDS = 0.25
HOLDING_LOOK_SECONDS = 0.75
CONTENT_VIEW_SECONDS = 5.0  # while nobody lacks anything: for those who watch the numbers
# Between two looks of a task, for each task of the fleet. All together make 50 views a second (with 500 tasks that is a
# third of a core of the database), and 10 while nobody lacks anything; of the cheap question 500.
SECONDS_PER_SESSION = 0.02
CONTENT_SECONDS_PER_SESSION = 0.1
QUESTION_SECONDS_PER_SESSION = 0.002
JITTER = 0.25
SHORT_PART = 0.5  # of that time for a task that has less than its share: it must not miss what others give back
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Mood:
    """What the pace depends on at one moment."""

    now: float
    view_at: float  # of the last view; NEVER: there is none
    sessions: int  # of the fleet, as far as it is known
    is_in_use: bool
    is_hungry: bool  # or has slots that it cannot use yet
    is_pressed: bool  # others are hungry, and this task holds something
    is_holding: bool
    is_answered: bool  # the cheap question was
    chance: random.Random
    is_short: bool = False  # it is hungry, and has less than its share
    is_moving: bool = False  # something is on its way: to be looked at soon
    is_changing: bool = False  # this step has changed something
    is_urgent: bool = False  # what is known is not enough to go on
    settles_at: float = math.inf  # when a view can make the next slot usable


@dataclass(frozen=True, slots=True)
class Pace:
    """The memory between two steps."""

    lively_until: float = NEVER
    looked_at: float = NEVER  # when a look at the fleet was asked for
    haste: float = 1.0  # jitter: tasks that have begun together do not look together for ever
    view_asked_at: float | None = None  # a view that was asked for and has not come
    is_question_open: bool = False  # the same of the cheap question


@dataclass(frozen=True, slots=True)
class Look:
    """What to do next."""

    wait_seconds: float
    wants_fleet: bool = False
    wants_hunger: bool = False


def set_pace(pace: Pace, mood: Mood, tick_seconds: float, *, can_look: bool) -> tuple[Pace, Look]:
    """Return when to step again, and what to ask the database before that.

    What was asked for is asked for again until it has come: the one who asks may have been busy, or have failed.
    """
    if mood.is_changing:
        pace = replace(pace, lively_until=mood.now + LIVELY_SECONDS)
    wait = _wait_seconds(pace, mood, tick_seconds)
    if not can_look:
        return replace(pace, looked_at=NEVER, view_asked_at=None, is_question_open=False), Look(wait)
    pace = _answered(pace, mood)
    is_due = mood.now >= mood.settles_at
    if mood.is_urgent or is_due or mood.now >= pace.looked_at + pace.haste * _own_look_seconds(mood):
        suffices = not (mood.is_urgent or is_due) and _is_question_enough(mood)
        pace = replace(
            pace,
            looked_at=mood.now,
            haste=mood.chance.uniform(1 - JITTER, 1 + JITTER),
            view_asked_at=pace.view_asked_at if suffices else mood.now,
            is_question_open=suffices,
        )
    wants_fleet = pace.view_asked_at is not None
    if mood.now < mood.settles_at:
        wait = min(wait, mood.settles_at - mood.now)
    wait = 0.0 if mood.is_urgent else wait
    return pace, Look(wait, wants_fleet, pace.is_question_open and not wants_fleet)


def _answered(pace: Pace, mood: Mood) -> Pace:
    if pace.view_asked_at is not None and mood.view_at >= pace.view_asked_at:
        return replace(pace, view_asked_at=None, is_question_open=False)
    return replace(pace, is_question_open=pace.is_question_open and not mood.is_answered)


def _own_look_seconds(mood: Mood) -> float:
    seconds = look_seconds(mood)
    return max(HUNGRY_LOOK_SECONDS, SHORT_PART * seconds) if mood.is_short else seconds


def look_seconds(mood: Mood) -> float:
    """Return the time between two looks: what a task needs, or what the database can bear of the whole fleet.

    It is also what others are expected to take at most: who has less than its share looks sooner.
    """
    if mood.is_hungry or mood.is_pressed:
        return max(HUNGRY_LOOK_SECONDS, mood.sessions * SECONDS_PER_SESSION)
    if mood.is_holding:
        return max(HOLDING_LOOK_SECONDS, mood.sessions * QUESTION_SECONDS_PER_SESSION)
    return _content_seconds(mood)


def _content_seconds(mood: Mood) -> float:
    return max(CONTENT_VIEW_SECONDS, mood.sessions * CONTENT_SECONDS_PER_SESSION)


def _is_question_enough(mood: Mood) -> bool:
    """Whether to ask only if anybody is hungry: that costs the same however large the fleet is."""
    return not (mood.is_hungry or mood.is_pressed) and mood.now - mood.view_at < _content_seconds(mood)


def _wait_seconds(pace: Pace, mood: Mood, tick_seconds: float) -> float:
    if mood.is_moving or mood.now < pace.lively_until:
        return min(FAST_SECONDS, tick_seconds)
    return min(BUSY_SECONDS, tick_seconds) if mood.is_in_use else tick_seconds
