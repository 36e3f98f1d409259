"""One run of the lab: the rig, the load, the faults one after the other, and the judgement.

What is done, and to whom, comes from the seed: the order of the faults, their subjects, how long they last, what the
functions ask for. When it is done depends on how soon the fleet is well again.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from emberpool_local.burst.machine import this_machine
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.lab.evidence import Run, gathered
from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.ledger import lay_out, read_ledger
from emberpool_local.lab.load import CODE_FOLDER, FUNCTION_NAME, HANDLER, INVOCATION_SECONDS, Load
from emberpool_local.lab.options import LabOptions
from emberpool_local.lab.oracles import Evidence, Limits
from emberpool_local.lab.results import LabResult
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.lab.sequence import FaultSequence
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.postgres.server import EmbeddedPostgres

BURST_FACTOR = 10
# Before the first fault: what the throughput is compared with.
WARM_INVOCATIONS, WARM_UP_SECONDS = 5, 3.0
LAST_SECONDS = 2.0  # after the last fault
LOOK_SECONDS = 0.05

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A run that is over, what it was judged by, and the faults that this machine could not do, with the reason."""

    result: LabResult
    evidence: Evidence
    left_out: tuple[tuple[str, str], ...]


def run(options: LabOptions, progress: Progress) -> Finished:
    """Run the lab. For the main thread, before any other was started; raises what open_rig() does."""
    with open_rig(RigOptions(tasks=options.tasks, network=options.network), progress) as rig:
        lay_out(rig.database.superuser_conninfo(), rig.database.role)
        return asyncio.run(_run(rig, options, progress))


async def _run(rig: Rig, options: LabOptions, progress: Progress) -> Finished:
    measured_at = datetime.datetime.now(datetime.UTC)
    begin = time.monotonic()
    progress(f"Starting {options.environments} execution environments")
    async with _fleet(rig, options) as fleet:
        load = Load(fleet, options.seed, options.environments)
        sequence = FaultSequence(rig, load, FAULTS, options.seed, progress)
        rig.load = load
        async with _sampled(rig) as sampler, load.running():
            await _warm_up(load)
            progress("The fleet is at work; the faults begin")
            if options.faults:
                await sequence.each(options.faults)
            else:
                await sequence.at_random(options.seconds)
            await asyncio.sleep(LAST_SECONDS)
        rig.load = None
    progress("Reading the ledger")
    ledger = await asyncio.to_thread(read_ledger, rig.database.superuser_conninfo())
    postgresql, pgbouncer = str(rig.database.primary.program.version), ".".join(map(str, rig.maker.pgbouncer.version))
    result, evidence = gathered(
        Run(
            seed=options.seed,
            command=options.command,
            measured_at=measured_at,
            machine=this_machine(postgresql, pgbouncer),
            environments=options.environments,
            tasks=options.tasks,
            invocations=load.invocations,
            ledger=ledger,
            samples=sampler.samples,
            happened=sequence.happened,
            limits=list(_limits(rig, begin)),
            notes=rig.notes,
            network=rig.network.kind,
            logs=list(_logged(rig)),
        )
    )
    return Finished(result, evidence, tuple(sequence.left_out))


async def _warm_up(load: Load) -> None:
    """Return when every environment has worked for a while."""
    while len(load.invocations) < WARM_INVOCATIONS * load.environments:  # noqa: ASYNC110 (a count, not an event)
        await asyncio.sleep(LOOK_SECONDS)
    await asyncio.sleep(WARM_UP_SECONDS)


def _fleet(rig: Rig, options: LabOptions) -> Fleet:
    return Fleet(
        HANDLER,
        CODE_FOLDER,
        rig.handler_environment(),
        timeout_seconds=INVOCATION_SECONDS,
        max_environments=(BURST_FACTOR + 1) * options.environments,
        start_method="fork",
        function_name=FUNCTION_NAME,
    )


def _limits(rig: Rig, begin: float) -> Iterator[Limits]:
    """Return what the fleet may have, from each moment on at which that changed."""
    options = rig.options
    for since, slots in ((begin, options.slots), *rig.slots_allowed):
        yield Limits(since, options.budget - options.slots + slots, options.floor, slots)


def _logged(rig: Rig) -> Iterator[tuple[float, str]]:
    """Return what the tasks that are there have logged, on the clock of time.monotonic()."""
    offset = time.monotonic() - time.time()
    for task in rig.tasks:
        for line in task.log_lines():
            with suppress(KeyError, ValueError):
                at = datetime.datetime.fromisoformat(line["time"]).timestamp() + offset
                yield at, f"{task.host} {line['source']} {line['level'].lower()}: {line['message']}"


@asynccontextmanager
async def _sampled(rig: Rig) -> AsyncIterator[BackendSampler]:
    """Sample every server of the database while the context is open, those that come later too."""
    (name, conninfo), *_ = _servers(rig)
    with (
        TempFolder("samples") as folder,
        BackendSampler(conninfo, rig.database.role, rig.budget_name, folder / "samples.jsonl", server=name) as sampler,
    ):
        following = asyncio.create_task(_follow(rig, sampler))
        try:
            yield sampler
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


async def _follow(rig: Rig, sampler: BackendSampler) -> None:
    known = {sampler.conninfo}
    while True:
        for name, conninfo in _servers(rig):
            if conninfo not in known:
                known.add(conninfo)
                sampler.add_server(name, conninfo)
        await asyncio.sleep(LOOK_SECONDS)


def _servers(rig: Rig) -> Iterator[tuple[str, str]]:
    """Return each server's name and a superuser's connection string to it, the primary's first."""
    servers: tuple[EmbeddedPostgres | None, ...] = (rig.database.primary, rig.database.standby)
    for server in filter(None, servers):
        yield server.host, server.conninfo(database=rig.database.name, by_socket=True)
