"""A task's disk is full, its clock jumps: what the task does, and the functions meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.ledger import lay_out
from emberpool_local.lab.load import Load
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.lab.task import LabTask
from emberpool_local.pgbouncer.program import PgbouncerProgram

from .working_rig import MANY_SECONDS, happened, working_load, works

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = RigOptions(tasks=2, has_aws=False)
HOUR = 3600


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram) -> Iterator[Rig]:
    """Two tasks whose clocks can be moved, and a ledger."""
    with open_rig(OPTIONS) as running:
        lay_out(running.database.superuser_conninfo(), running.database.role)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(rig: Rig) -> AsyncIterator[Load]:
    """Functions that are at work all the time."""
    async with working_load(rig) as running:
        await works(running)
        yield running


async def test_full_disk_fails_no_invocation(rig: Rig, load: Load) -> None:
    """There is not a byte of room while it lasts; the task serves on, and there is room afterwards."""
    if rig.network.kind != "namespaces":
        pytest.skip("without root a task has no disk of its own")
    room = [shutil.disk_usage(task.run_folder).free for task in rig.tasks]
    during: list[int] = []

    async def look() -> None:
        while True:
            during.append(min(shutil.disk_usage(task.run_folder).free for task in rig.tasks))
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    assert await happened(rig, load, FAULTS["disk-full"]) == []
    looking.cancel()
    assert min(during) == 0
    assert min(room) > 0
    assert all(shutil.disk_usage(task.run_folder).free > 0 for task in rig.tasks)
    assert all(task.is_ready() for task in rig.tasks)
    assert any("No space left on device" in line["message"] for task in rig.tasks for line in task.log_lines())


async def test_clock_that_jumps_fails_only_what_is_in_flight(rig: Rig, load: Load) -> None:
    """The same processes go on after a jump forwards and one backwards, and nothing that begins later fails."""
    before = [(task.agent_pid(), task.pgbouncer_pids()) for task in rig.tasks]
    for seed in (1, 2):
        assert await happened(rig, load, FAULTS["clock-jump"], seed) == []
    assert [(task.agent_pid(), task.pgbouncer_pids()) for task in rig.tasks] == before
    assert {task.clock.seconds for task in rig.tasks if task.clock} == {0}


async def test_failover_is_followed_after_the_clock_went_back(rig: Rig, load: Load) -> None:
    """A task that resolved the database's name while its clock was ahead does not stay with the address of then."""
    tasks = [task for task in rig.tasks if task.clock]
    for task in tasks:
        assert task.clock is not None
        task.clock.shift(HOUR)
    await asyncio.sleep(2 * 2.5)  # the name is resolved with the clock ahead
    await works(load)
    for task in tasks:
        assert task.clock is not None
        task.clock.shift(0)
    end = time.monotonic() + MANY_SECONDS
    while not all(map(noticed, tasks)):
        assert time.monotonic() < end, "no task noticed that its clock went back"
        await asyncio.sleep(0.05)
    await works(load)
    assert await happened(rig, load, FAULTS["failover"]) == []


def noticed(task: LabTask) -> bool:
    return any("the clock went back" in line["message"] for line in task.log_lines())
