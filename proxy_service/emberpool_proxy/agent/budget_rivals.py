"""What is fair between this task and the others that want slots. Pure; everybody who sees the same agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emberpool_proxy.agent.budget_reading import FleetView, Session
from emberpool_proxy.agent.budget_share import fair_shares, tolerance

# Who is hungry, sees free slots and takes none for so long does not take any: its agent hangs.
HANG_SECONDS = 3.0
HANG_LOOKS = 3  # of its own; in a large fleet they are far apart
HANG_FORGOTTEN_SECONDS = 60.0  # then it is given another chance


@dataclass(frozen=True, slots=True)
class Reserve:
    """A hungry task that leaves free slots alone."""

    since: float
    session: Session
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Rivals:
    """The others, as far as they are believed to want slots."""

    sessions: tuple[Session, ...] = ()
    reserves: Mapping[int, Reserve] = field(default_factory=dict)
    missing: int = 0  # what they lack together
    judged: tuple[float, int, int] | None = None  # what the two below are the answer to: view, wants, held
    share: int = 0  # this task's fair share: what a task holds and what it lacks is what it wants
    surplus: int = 0  # how many of its slots belong to others, who lack them and find too few free


def patience(look_seconds: float) -> float:
    """Return after what time without a look of its own, in seconds, a task is taken for one that hangs."""
    return max(HANG_SECONDS, HANG_LOOKS * look_seconds)


def observe(rivals: Rivals, view: FleetView, own_wants: int, look_seconds: float) -> Rivals:
    """Return the rivals after a view. One that hangs counts with what it holds, until that changes."""
    shares = _shares(view.others, view, own_wants) if view.free else {}
    reserves: dict[int, Reserve] = {}
    for session in view.others:
        before = rivals.reserves.get(session.process_id)
        if before is not None and (before.session != session or view.at - before.since >= HANG_FORGOTTEN_SECONDS):
            before = None
        if before is not None and before.hangs:
            reserves[session.process_id] = before
        elif view.free and session.missing and session.slots < shares[session.process_id]:
            since = view.at if before is None else before.since
            reserves[session.process_id] = Reserve(since, session, hangs=view.at - since >= patience(look_seconds))
    sessions = tuple(
        replace(session, missing=0)
        if session.process_id in reserves and reserves[session.process_id].hangs
        else session
        for session in view.others
    )
    return Rivals(sessions, reserves, sum(session.missing for session in sessions))


def judge(rivals: Rivals, view: FleetView, wants: int, held: int) -> Rivals:
    """Find out what is fair to a task that wants so many slots and holds some of them; once for each view and want."""
    if rivals.judged == (view.at, wants, held):
        return rivals
    shares = _shares(rivals.sessions, view, wants)
    share = shares[view.own.process_id]
    return replace(
        rivals,
        judged=(view.at, wants, held),
        share=share,
        surplus=_surplus(rivals, shares, len(view.free), share, held),
    )


def _surplus(rivals: Rivals, shares: Mapping[int, int], free: int, share: int, held: int) -> int:
    """Return how many of our slots belong to others who lack them and find too few free.

    A small difference is left alone, unless it means much to one of the others.
    """
    lacks = [(shares[s.process_id] - s.slots, shares[s.process_id]) for s in rivals.sessions if s.missing]
    if held <= share or sum(max(0, lack) for lack, _ in lacks) <= free:
        return 0
    is_worth_it = held - share >= tolerance(share) or any(lack >= tolerance(theirs) for lack, theirs in lacks)
    return held - share if is_worth_it else 0


def _shares(others: tuple[Session, ...], view: FleetView, own_wants: int) -> dict[int, int]:
    wants = {session.process_id: session.slots + session.missing for session in others}
    return fair_shares({**wants, view.own.process_id: own_wants}, view.slots)
