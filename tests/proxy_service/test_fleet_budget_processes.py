"""Tasks with two PgBouncer processes each: what a task holds is split between them by demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.pgbouncer.program import PgbouncerProgram

from .conftest import DATABASE, DATABASE_USER
from .fleet_rig import BUDGET, BUDGET_NAME, MOST_TASKS, FleetRig, Task, demand, fleet_rig, until

FLOOR = 3  # two processes with one entry each, and one connection for one that starts again
SLOTS = BUDGET - MOST_TASKS * (FLOOR + 2)
# The kernel spreads them over both processes by chance, and each must be able to use all that there is: of 40, one
# process had no more than 12 in one run of a hundred.
CLIENTS = 80


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetRig]:
    """One busy task of a fleet that may have several."""
    folder = tmp_path_factory.mktemp("processes")
    with fleet_rig(pgbouncer_program, folder, pgbouncer_processes=2, floor_connections=FLOOR) as running:
        yield running


def servers(task: Task) -> list[int]:
    """Server connections of each process."""
    pools = [process["pools"] for process in task.document()["processes"]]
    return [sum(sum(pool["servers"].values()) for pool in of_one) for of_one in pools]


async def test_both_processes_of_a_busy_task_use_its_slots_within_the_budget(rig: FleetRig, tmp_path: Path) -> None:
    """Both get a part of what the task holds; what one cannot use is the other's; no sample is above the budget."""
    task = rig.add()
    samples = tmp_path / "samples.jsonl"
    with BackendSampler(rig.server.conninfo(database=DATABASE), DATABASE_USER, BUDGET_NAME, samples) as sampler:
        async with demand(task, CLIENTS) as load:
            await until("the task did not get the slots", lambda: rig.held(task) == SLOTS)
            # One connection less than it may have: the spare of a process that starts again.
            await until("its slots are not used", lambda: rig.backends().get(task.host, 0) == FLOOR + SLOTS - 1)
            await until("one process has nearly all", lambda: min(servers(task)) >= SLOTS // 4)
            done = load.done
            rig.kill_pgbouncer(task)
            await until("it does not serve any more", lambda: load.done > done + CLIENTS)
            # The clients of the one that was killed are gone: the other one has what it had, all but its least.
            await until("the rest is not used", lambda: rig.backends().get(task.host, 0) >= FLOOR + SLOTS - 2)
    above = sampler.above(BUDGET) or sampler.above_slots(FLOOR, SLOTS)
    assert len(above) == 0, f"{sampler.summary()}\n{sampler.time_line(above[0].at, rig.notes)}"
