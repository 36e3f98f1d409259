"""Faults of tasks, the network, the environments and the budget, one at a time: each happens, and ends."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.ledger import lay_out
from emberpool_local.lab.load import Load
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.lab.task import LabTask
from emberpool_local.pgbouncer.program import PgbouncerProgram

from .working_rig import ENVIRONMENTS, happened, working_load, works

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = RigOptions(tasks=2, most_tasks=4, has_aws=False, has_clock=False)


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram) -> Iterator[Rig]:
    """Two tasks and a ledger."""
    with open_rig(OPTIONS) as running:
        lay_out(running.database.superuser_conninfo(), running.database.role)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(rig: Rig) -> AsyncIterator[Load]:
    """Functions that are at work all the time."""
    async with working_load(rig) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def at_work(rig: Rig, load: Load) -> Load:
    """The load, with as many tasks as at the beginning and every environment warm."""
    while len(rig.tasks) < OPTIONS.tasks:
        await asyncio.to_thread(rig.add)
    await works(load)
    return load


def addresses(tasks: list[LabTask]) -> set[str]:
    return {task.host for task in tasks}


@pytest.mark.parametrize("name", ["agent-killed", "pgbouncer-killed"])
async def test_other_processes_run_after_a_crash(rig: Rig, at_work: Load, name: str) -> None:
    """The task is the same, the process that was killed is another one, and only what the table says has failed."""
    before = {(task.host, task.agent_pid(), task.pgbouncer_pids()) for task in rig.tasks}
    assert await happened(rig, at_work, FAULTS[name]) == []
    after = {(task.host, task.agent_pid(), task.pgbouncer_pids()) for task in rig.tasks}
    assert len(before & after) == OPTIONS.tasks - 1
    assert {host for host, *_ in before} == {host for host, *_ in after}


@pytest.mark.parametrize(("name", "stay"), [("rolling-deployment", 0), ("task-vanished", 1)])
async def test_another_task_takes_the_place_of_one_that_goes(rig: Rig, at_work: Load, name: str, stay: int) -> None:
    """There are as many tasks as before, all of them ready, and only what the table says has failed."""
    before = addresses(rig.tasks)
    assert await happened(rig, at_work, FAULTS[name]) == []
    assert len(addresses(rig.tasks) & before) == stay
    assert len(rig.tasks) == OPTIONS.tasks
    assert all(task.is_ready() for task in rig.tasks)


@pytest.mark.parametrize("name", ["database-partition", "functions-partition", "network-delay", "packet-loss"])
async def test_network_heals(rig: Rig, at_work: Load, name: str) -> None:
    """Only what the table says has failed, and afterwards every task gets connections again."""
    if FAULTS[name].needs_namespaces and rig.network.kind != "namespaces":
        pytest.skip("relays have no packets")
    before = addresses(rig.tasks)
    assert await happened(rig, at_work, FAULTS[name]) == []
    assert addresses(rig.tasks) == before
    await asyncio.to_thread(rig.wait_until_balanced)


async def test_forgotten_connections_are_replaced_before_the_handler(rig: Rig, at_work: Load) -> None:
    """Half of the environments find their connection silently dropped after a freeze, and no invocation fails."""
    before = connections(rig, at_work)
    assert len(before) == ENVIRONMENTS
    assert await happened(rig, at_work, FAULTS["silent-drop"]) == []
    assert len(connections(rig, at_work) - before) >= ENVIRONMENTS // 2


async def test_budget_that_is_cut_is_kept(rig: Rig, at_work: Load) -> None:
    """The smaller budget of one new task is kept by the whole fleet; in the end every task has the larger one again."""
    seen: list[int] = []
    fault = FAULTS["budget-cut"]
    async with fault.happen(rig, random.Random(1)) as subject:
        most = OPTIONS.floor * OPTIONS.tasks + OPTIONS.slots - OPTIONS.budget + int(subject.split()[0])
        for _ in range(20):
            seen.append(await asyncio.to_thread(rig.pool_connections))
            await asyncio.sleep(0.02)
    assert most < OPTIONS.floor * OPTIONS.tasks + OPTIONS.slots
    assert max(seen) <= most
    assert {task.proxy._settings.get("max_server_connections") for task in rig.tasks} == {None}


def connections(rig: Rig, load: Load) -> set[str]:
    """Return the sockets of the environments' connections to the balancer, as the kernel numbers them."""
    found = set()
    for environment in load.fleet.environments:
        own = {os.readlink(file) for file in Path(f"/proc/{environment.pid}/fd").iterdir()}  # noqa: PTH115 (no path)
        for line in Path(f"/proc/{environment.pid}/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, *_, inode = line.split()[:10]
            if int(remote.split(":")[1], 16) == rig.balancer.port and f"socket:[{inode}]" in own:
                found.add(inode)
    return found
