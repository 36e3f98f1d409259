"""Which of the held slots limits may count on: settled ones, as far as the database's own count has room for. Pure.

A slot comes free as soon as its holder's control connection is gone, its pool's connections perhaps not yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from emberpool_proxy.agent.budget_reading import FleetView, Reading

# Who held a slot before us, and lost its control connection, has lowered its limits within this time.
SETTLE_SECONDS = 0.25
# What the database counts above everybody's slots for so long will not go away by itself.
EXCESS_SECONDS = 2.0
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Usable:
    """The memory between two readings. After a restart of the agent, `slots` is what it has inherited."""

    slots: frozenset[int] = frozenset()
    seen_at: Mapping[int, float] = field(default_factory=dict)  # when a held slot was first seen as held
    view_at: float = NEVER  # the last view that was taken into account
    excess: int = 0  # connections that it counted and that are neither ours nor explained by others' slots
    over_since: float | None = None  # the first of the views in a row that counted more than everybody may have
    servers: int = 0  # our own at the reading before

    @property
    def is_complete(self) -> bool:
        """Whether all held slots are usable."""
        return len(self.slots) == len(self.seen_at)

    @property
    def settles_at(self) -> float:
        """When a view can make the next slot usable that no view has judged yet; infinity: there is none."""
        settling = (since + SETTLE_SECONDS for number, since in self.seen_at.items() if number not in self.slots)
        return min((at for at in settling if at > self.view_at), default=math.inf)


def observe(usable: Usable, reading: Reading, floor: int, most_tasks_alive: int) -> Usable:
    """Return what is usable after a reading. The floors of tasks without a control connection are expected, too."""
    view = reading.fleet
    servers = sum(use.servers for use in reading.pools.values())
    seen_at = {number: usable.seen_at.get(number, reading.now) for number in reading.held}
    usable = replace(usable, slots=usable.slots & reading.held, seen_at=seen_at)
    if view is not None and view.at > usable.view_at:
        unseen = max(0, most_tasks_alive - len(view.others) - 1) * floor
        explained = unseen + sum(session.floor + session.slots for session in view.others)
        # Our own as they are, not as they may be: what we have not opened yet would hide as many of others'.
        excess = max(0, view.pool_connections - explained - min(servers, usable.servers))
        if view.others_excess is not None:
            excess = view.others_excess
        usable = replace(usable, view_at=view.at, excess=excess)
        still_closing = max(0, servers - floor - len(usable.slots))
        over = view.pool_connections - still_closing - explained - floor - len(reading.held)
        usable = _withdraw(usable, view, over)
        usable = _add(usable)
    return replace(usable, servers=servers)


def pass_on(usable: Usable, give: frozenset[int], lawful: frozenset[int]) -> Usable:
    """Return what is usable after `give`: what replaces a slot whose number has become too high is so at once."""
    exchanged = len((give & usable.slots) - lawful)
    heirs = sorted(lawful - usable.slots - give)[:exchanged]
    return replace(usable, slots=(usable.slots - give) | set(heirs))


def _add(usable: Usable) -> Usable:
    settled = sorted(
        number
        for number, since in usable.seen_at.items()
        if number not in usable.slots and usable.view_at >= since + SETTLE_SECONDS
    )
    return replace(usable, slots=usable.slots | set(settled[: max(0, len(settled) - usable.excess)]))


def _withdraw(usable: Usable, view: FleetView, over: int) -> Usable:
    """Give up our part of what the fleet is over its budget, when that lasts: somebody else uses the pool's role."""
    if over <= 0:
        return replace(usable, over_since=None)
    since = view.at if usable.over_since is None else usable.over_since
    if view.at - since < EXCESS_SECONDS:
        return replace(usable, over_since=since)
    everybody = len(usable.slots) + sum(session.slots for session in view.others)
    part = -(-over * len(usable.slots) // max(1, everybody))
    return replace(
        usable, over_since=view.at, slots=frozenset(sorted(usable.slots)[: max(0, len(usable.slots) - part)])
    )
