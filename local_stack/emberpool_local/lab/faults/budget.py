"""What happens to the budget while the fleet runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emberpool_local.errors import PromiseBroken
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.faults.tasks import has_room_for_another
from emberpool_local.lab.rig import Rig

SHRINK_SECONDS = 15.0  # in which all tasks have come down to the smaller budget


@asynccontextmanager
async def budget_cut(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Replace one task by one that is told a smaller budget: its claim counts for all, until it is replaced again.

    Raises TimeoutError when the fleet does not come down to it, PromiseBroken when it does not stay there.
    """
    options = rig.options
    cut = chance.randint(options.slots // 2, 3 * options.slots // 4)
    smaller = options.budget - cut
    old = chance.choice(rig.tasks)
    rig.note(f"a deployment begins that may have {smaller} connections instead of {options.budget}")
    new = await asyncio.to_thread(rig.replace, old, max_server_connections=str(smaller))
    # What idle tasks and the agents leave unused of the budget would hide a few too many.
    most = options.floor * len(rig.tasks) + options.slots - cut
    try:
        await asyncio.to_thread(
            wait_until,
            f"the fleet did not come down to {most} connections of its pools",
            lambda: rig.pool_connections() <= most,
            SHRINK_SECONDS,
        )
        rig.note(f"the fleet has come down to {most} connections of its pools")
        yield f"{smaller} connections instead of {options.budget}"
        now = await asyncio.to_thread(rig.pool_connections)
        if now > most:
            raise PromiseBroken(
                f"The fleet's pools have {now} connections, {most} may be", "Read the time line of the run"
            )
    finally:
        await asyncio.to_thread(rig.replace, new)


FAULTS_OF_THE_BUDGET = (
    Fault(
        name="budget-cut",
        title="The budget is cut while it is used",
        promise="nothing fails: the fleet comes down to the smaller budget, and clients wait",
        happen=budget_cut,
        lasts_seconds=(1.0, 3.0),
        is_possible=has_room_for_another,
    ),
)
