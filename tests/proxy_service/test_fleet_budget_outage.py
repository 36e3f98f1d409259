"""The database restarts under a fleet: all locks and connections are gone at once, and the budget holds after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.pgbouncer.program import PgbouncerProgram

from .conftest import DATABASE, DATABASE_USER
from .fleet_rig import BUDGET, BUDGET_NAME, FLOOR, SLOTS, FleetRig, demand, fleet_rig, has_most, until

MANY = FLOOR + SLOTS + 10


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetRig]:
    """Two tasks."""
    with fleet_rig(pgbouncer_program, tmp_path_factory.mktemp("outage")) as running:
        running.add()
        running.add()
        yield running


async def test_slots_are_taken_anew_after_the_database_has_restarted(rig: FleetRig, tmp_path: Path) -> None:
    """Old limits do not outlive the locks they stood on: first comes the floor, then what is locked."""
    busy, other = rig.tasks
    async with demand(busy, MANY):
        await has_most(rig, busy)
        before = rig.slots()
        await asyncio.to_thread(rig.server.restart, "immediate")
    assert before
    samples = tmp_path / "samples.jsonl"
    with BackendSampler(rig.server.conninfo(database=DATABASE), DATABASE_USER, BUDGET_NAME, samples) as sampler:
        async with demand(other, MANY) as heir:
            await has_most(rig, other)
            async with demand(busy, MANY) as again:
                await until("the slots are not shared", lambda: min(rig.held(busy), rig.held(other)) >= SLOTS // 3)
    assert heir.errors + again.errors == []
    above = sampler.above(BUDGET) or sampler.above_slots(FLOOR, SLOTS)
    assert len(above) == 0, f"{sampler.summary()}\n{sampler.time_line(above[0].at, rig.notes)}"
