"""Blocks of load: as many environments as there are, each with the next invocation as soon as it has answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from benchmarks.command import Progress
from benchmarks.whole_path.rig import CODE_FOLDER, WholePath

from emberpool_local.burst.results import percentile
from emberpool_local.lambda_runtime import Fleet, Outcome

PAGES = 1000
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Block:
    """What one way did in one block."""

    seconds: float
    latencies_ms: Sequence[float]
    failures: Sequence[str]

    @property
    def rate(self) -> float:
        """Succeeded invocations a second."""
        return len(self.latencies_ms) / self.seconds

    def at(self, percent: float) -> float:
        """Return a percentile of the succeeded invocations' latencies, 0 without any."""
        return percentile(self.latencies_ms, percent) or 0.0


@dataclass(frozen=True)
class Found:
    """The blocks of each way at one delay, and what a round trip took then."""

    blocks: Mapping[str, Sequence[Block]]
    round_trips_ms: Sequence[float]


async def measure(
    path: WholePath,
    environments: int,
    delays_ms: Sequence[float],
    repetitions: int,
    seconds: float,
    progress: Progress,
) -> dict[float, Found]:
    """Measure all ways at all delays, in turns. The environments are started once and stay."""
    async with AsyncExitStack() as stack:
        fleets = {}
        for way in path.ways:
            fleet = Fleet(
                way.handler,
                CODE_FOLDER,
                way.variables,
                timeout_seconds=TIMEOUT_SECONDS,
                max_environments=environments,
                function_name=way.name.replace(" ", "-"),
            )
            fleets[way.name] = await stack.enter_async_context(fleet)
            await fleet.scale_out(environments)
        found = {}
        for delay_ms in delays_ms:
            with path.delayed(delay_ms):
                round_trips = await asyncio.to_thread(path.round_trips_ms)
                blocks: dict[str, list[Block]] = {name: [] for name in fleets}
                for repetition in range(1, repetitions + 1):
                    progress(f"{delay_ms:g} ms, {repetition} of {repetitions}: {len(fleets)} blocks")
                    for name in random.sample(list(fleets), len(fleets)):
                        blocks[name].append(await _block(fleets[name], environments, seconds))
                found[delay_ms] = Found(blocks, round_trips)
        return found


async def _block(fleet: Fleet, environments: int, seconds: float) -> Block:
    # Once each: an environment that had nothing to do for long checks its connection.
    await asyncio.gather(*(_invoke(fleet) for _ in range(environments)))
    outcomes: list[Outcome] = []
    began = time.monotonic()
    await asyncio.gather(*(_keep_busy(fleet, began + seconds, outcomes) for _ in range(environments)))
    return Block(
        time.monotonic() - began,
        [outcome.duration_ms for outcome in outcomes if outcome.status == "succeeded"],
        [f"{one.error_type}: {one.error_message}" for one in outcomes if one.status != "succeeded"],
    )


async def _keep_busy(fleet: Fleet, until: float, outcomes: list[Outcome]) -> None:
    while time.monotonic() < until:
        outcomes.append(await _invoke(fleet))


async def _invoke(fleet: Fleet) -> Outcome:
    return await fleet.invoke(json.dumps({"page": random.randint(1, PAGES)}).encode())
