"""What happens to the machine below a task: its disk is full, its clock jumps."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.rig import Rig

BURST = 20  # cold starts: the agents write down what each pool may have then
BLOCK = bytes(4096)
LARGEST_DISK_BYTES = 256 * 1024 * 1024
HOUR, DAY = 3600, 86_400
JUMPS_SECONDS = (90, -90, HOUR, -HOUR, DAY)  # a machine that was paused, one whose clock was set


@asynccontextmanager
async def disk_full(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Leave no room in the run folder of one task while a burst has it change its limits; there is room at the end."""
    task = chance.choice(rig.tasks)
    filler = task.run_folder / "filler"
    rig.note(f"{task.host}: its disk is full")
    await asyncio.to_thread(_fill, filler)
    try:
        if rig.load:
            await rig.load.burst(BURST)
        yield f"task {task.host}"
    finally:
        filler.unlink(missing_ok=True)
        rig.note(f"{task.host}: there is room on its disk")


@asynccontextmanager
async def clock_jump(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let the clock on the wall of one task jump, forwards or backwards, and back again at the end."""
    task = chance.choice([task for task in rig.tasks if task.clock])
    seconds = chance.choice(JUMPS_SECONDS)
    clock = task.clock
    if clock is None:
        raise RuntimeError(f"the clock of {task.host} cannot be moved")
    rig.note(f"{task.host}: its clock jumps by {seconds:+d} s")
    clock.shift(seconds)
    try:
        yield f"task {task.host}, by {seconds:+d} s"
    finally:
        clock.shift(0)
        rig.note(f"{task.host}: its clock is right again")


def has_a_clock(rig: Rig) -> bool:
    """Whether there is a task whose clock can be moved."""
    return any(task.clock for task in rig.tasks)


def _fill(filler: Path) -> None:
    # From a thread that sees other mounts this would fill the machine's own disk.
    if (size := shutil.disk_usage(filler.parent).total) > LARGEST_DISK_BYTES:
        raise RuntimeError(f"{filler.parent} is not a task's own small disk: it has {size} bytes")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(BLOCK):
            pass


FAULTS_OF_THE_MACHINE = (
    Fault(
        name="disk-full",
        title="the disk of a task is full",
        promise="nothing: what cannot be written is logged, and written when there is room",
        happen=disk_full,
        lasts_seconds=(1.0, 3.0),
        needs_namespaces=True,
    ),
    Fault(
        name="clock-jump",
        title="the clock of a task jumps",
        # PgBouncer measures every limit by the clock on the wall: by a jump they are over at once.
        promise="what is in flight there may fail, at the jump and at the way back; a failover is followed as ever",
        happen=clock_jump,
        may_fail_seconds=0.5,
        lasts_seconds=(1.0, 2.0),
        is_possible=has_a_clock,
    ),
)
