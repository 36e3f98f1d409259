"""What happens to the functions' environments: they freeze, their connections are forgotten, many come at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.rig import LabLoad, Rig

# Longer than the layer trusts a connection without asking it: then it is as after an hour, as the layer looks at the
# wall clock, and the balancer has forgotten the connection.
FROZEN_SECONDS = (6.0, 7.0)
BURST_FACTOR = 10


def has_load(rig: Rig) -> bool:
    """Whether functions are there."""
    return rig.load is not None


@asynccontextmanager
async def environments_frozen(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Freeze half of the environments until the balancer resets what they send, as after an NLB's idle timeout."""
    async with _frozen(rig, chance, silently=False) as subject:
        yield subject


@asynccontextmanager
async def silent_drop(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Freeze half of the environments until whoever is between them and the tasks drops what they send, silently."""
    async with _frozen(rig, chance, silently=True) as subject:
        yield subject


@asynccontextmanager
async def _frozen(rig: Rig, chance: random.Random, silently: bool) -> AsyncIterator[str]:
    seconds = chance.uniform(*FROZEN_SECONDS)
    async with _load(rig).idle(len(_load(rig).fleet.environments) // 2) as environments:
        rig.note(f"{len(environments)} environments are frozen")
        for environment in environments:
            environment.freeze()
        await asyncio.sleep(seconds)
        count = await asyncio.to_thread(rig.balancer.forget_idle, seconds - 1.0, silently)
        rig.note(f"{count} idle connections are forgotten, {'silently' if silently else 'with a reset'}")
    yield f"{len(environments)} environments"


@asynccontextmanager
async def cold_start_burst(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let many more environments start at once, each with an invocation."""
    del chance
    count = (BURST_FACTOR - 1) * len(_load(rig).fleet.environments)
    rig.note(f"{count} environments start at once")
    await _load(rig).burst(count)
    rig.note(f"{count} environments have run and are gone")
    yield f"{count} environments"


def _load(rig: Rig) -> LabLoad:
    if rig.load is None:
        raise RuntimeError("the rig has no functions: set rig.load first")
    return rig.load


FAULTS_OF_ENVIRONMENTS = (
    Fault(
        name="environments-frozen",
        title="Environments are frozen for long",
        promise="nothing: their connections are replaced before the handler runs",
        happen=environments_frozen,
        is_possible=has_load,
    ),
    Fault(
        name="silent-drop",
        title="Idle connections are dropped silently",
        promise="nothing: they are replaced before the handler runs, in bounded time",
        happen=silent_drop,
        is_possible=has_load,
    ),
    Fault(
        name="cold-start-burst",
        title=f"{BURST_FACTOR} times as many environments",
        promise="they wait in line: nothing fails, the fleet stays within the budget",
        happen=cold_start_burst,
        is_possible=has_load,
        weight=0.5,
    ),
)
