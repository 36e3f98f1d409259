"""A rig whose functions are at work all the time, for tests of one fault after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emberpool_local.lab.faults import Fault
from emberpool_local.lab.load import CODE_FOLDER, FUNCTION_NAME, HANDLER, Invocation, Load
from emberpool_local.lab.rig import Rig
from emberpool_local.lambda_runtime import Fleet

ENVIRONMENTS = 6
INVOCATION_SECONDS = 20.0
MANY_SECONDS = 30.0


@asynccontextmanager
async def working_load(rig: Rig) -> AsyncIterator[Load]:
    """Run functions against the rig, whose ledger is laid out, until the context is left."""
    async with Fleet(
        HANDLER,
        CODE_FOLDER,
        rig.handler_environment(),
        start_method="fork",
        max_environments=ENVIRONMENTS * 12,
        timeout_seconds=INVOCATION_SECONDS,
        function_name=FUNCTION_NAME,
    ) as fleet:
        load = Load(fleet, 1, ENVIRONMENTS, doomed_share=0.0)
        rig.load = load
        async with load.running():
            yield load
        rig.load = None


async def works(load: Load) -> None:
    """Return when three times as many more invocations have succeeded as there are environments."""
    since, end = len(load.invocations), time.monotonic() + MANY_SECONDS
    while sum(one.kind == "succeeded" for one in load.invocations[since:]) < 3 * ENVIRONMENTS:
        assert time.monotonic() < end, "the functions do not work"
        await asyncio.sleep(0.02)


async def happened(rig: Rig, load: Load, fault: Fault, seed: int = 1) -> list[Invocation]:
    """Let a fault happen for the shortest time; return what failed although it promises that it does not."""
    since, begun = len(load.invocations), time.monotonic()
    async with fault.happen(rig, random.Random(seed)):
        await asyncio.sleep(fault.lasts_seconds[0])
        ended = time.monotonic()
    await works(load)
    failed = [one for one in load.invocations[since:] if one.kind != "succeeded"]
    if fault.may_fail_seconds is None:
        return failed
    until = ended + fault.may_fail_seconds
    return [one for one in failed if one.begun > until or one.ended < begun]
