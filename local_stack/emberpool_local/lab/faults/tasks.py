"""What happens to tasks: their processes crash, they are replaced, taken away, or vanish."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.rig import Rig

FEWEST_TASKS = 2  # before one is taken away: another one serves meanwhile
# A client that the balancer sent to a task just before that ended; the balancer needs half a second to notice.
AFTERMATH_SECONDS = 1.5


@asynccontextmanager
async def pgbouncer_killed(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """SIGKILL the PgBouncer of one task; entered when another one answers."""
    task = chance.choice(rig.may_crash())
    await asyncio.to_thread(rig.kill_pgbouncer, task)
    yield f"task {task.host}"


@asynccontextmanager
async def agent_killed(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """SIGKILL the agent of one task; entered when another one is ready."""
    task = chance.choice(rig.may_crash())
    await asyncio.to_thread(rig.kill_agent, task)
    yield f"task {task.host}"


@asynccontextmanager
async def rolling_deployment(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Replace every task, as many at once as there is room for: the new ones first."""
    del chance  # all of them, the oldest first
    count = len(rig.tasks)
    await asyncio.to_thread(rig.roll_out)
    yield f"all {count} tasks"


@asynccontextmanager
async def scale_in(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Drain one task; another one is started at the end."""
    task = chance.choice(rig.tasks)
    await asyncio.to_thread(rig.drain, task)
    try:
        yield f"task {task.host}"
    finally:
        await asyncio.to_thread(rig.add)


@asynccontextmanager
async def task_vanished(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let one task disappear without a FIN; another one is started at the end, as ECS does."""
    task = chance.choice(rig.tasks)
    await asyncio.to_thread(rig.vanish, task)
    try:
        yield f"task {task.host}"
    finally:
        await asyncio.to_thread(rig.add)


def has_one_to_spare(rig: Rig) -> bool:
    """Whether one task may be away for a while."""
    return len(rig.tasks) >= FEWEST_TASKS


def has_room_for_another(rig: Rig) -> bool:
    """Whether one more task may be alive, beside one that is going."""
    return has_one_to_spare(rig) and rig.room_for_tasks() > 0


FAULTS_OF_TASKS = (
    Fault(
        name="pgbouncer-killed",
        title="PgBouncer crashes",
        promise="what is in flight there fails or is repeated at BEGIN; another PgBouncer runs within a second",
        happen=pgbouncer_killed,
        may_fail_seconds=AFTERMATH_SECONDS,
        is_possible=lambda rig: bool(rig.may_crash()),
    ),
    Fault(
        name="agent-killed",
        title="The agent crashes",
        promise="clients see nothing: the pool keeps serving, within the budget",
        happen=agent_killed,
        is_possible=lambda rig: bool(rig.may_crash()),
    ),
    Fault(
        name="rolling-deployment",
        title="Every task is replaced",
        promise="clients see nothing: new tasks first, then the old ones drain",
        happen=rolling_deployment,
        is_possible=has_room_for_another,
    ),
    Fault(
        name="scale-in",
        title="A task is taken away",
        promise="clients see nothing: the task drains",
        happen=scale_in,
        lasts_seconds=(0.5, 2.0),
        is_possible=has_one_to_spare,
    ),
    Fault(
        name="task-vanished",
        title="A task vanishes without a word",
        promise="what is in flight there fails; its environments go to another task, its slots become free",
        happen=task_vanished,
        may_fail_seconds=AFTERMATH_SECONDS,
        lasts_seconds=(0.5, 2.0),
        is_possible=has_room_for_another,
    ),
)
