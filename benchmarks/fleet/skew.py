"""Skewed load on four tasks: one shared budget against one big pool with all of it, and against an equal split.

pgbench holds each server connection for a fixed time, so that connections and not this machine's cores are short. Nine
of ten clients are on the busy task. The three take turns, in blocks.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import Progress
from benchmarks.fleet.rig import (
    FleetTerms,
    RunningFleet,
    RunningTask,
    pgbench_of,
    running_alone,
    running_database,
    running_fleet,
)

from emberpool_local.pgbouncer.program import PgbouncerProgram

BUDGET = 200
TASKS = 4
TERMS = FleetTerms(tasks=TASKS, slots=BUDGET - TASKS * 4)
CLIENTS = 2 * BUDGET
BUSY_SHARE = 0.9
HOLD_MS = 100  # 2,000 transactions a second at most: what the cores bear beside everything else
LEAD_IN_SECONDS = 8  # of a block: clients log in, slots move, PgBouncer opens connections one after the other
SHARED, BIG, SPLIT = "emberpool, a shared budget", "one big pool", "an equal split"
PROGRESS = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps, lat ([\d.]+) ms")


@dataclass(frozen=True)
class Side:
    """What the clients of the busy task, or those of all quiet ones, saw, second by second."""

    rates: Sequence[float]
    latencies_ms: Sequence[float]

    def rate(self, since: int) -> float:
        """Return the mean transactions a second from that second on."""
        return sum(self.rates[since:]) / len(self.rates[since:])

    def wait_ms(self, since: int) -> float:
        """Return the mean wait: what a transaction took longer than it held its connection."""
        done = sum(self.rates[since:]) or 1.0
        pairs = zip(self.rates[since:], self.latencies_ms[since:], strict=True)
        return sum(rate * latency for rate, latency in pairs) / done - HOLD_MS


@dataclass(frozen=True)
class Block:
    """One block of one kind of fleet."""

    busy: Side
    quiet: Side

    def rate(self, since: int = LEAD_IN_SECONDS) -> float:
        return self.busy.rate(since) + self.quiet.rate(since)


def measure(
    program: PgbouncerProgram, repetitions: int, seconds: int, folder: Path, progress: Progress
) -> Mapping[str, Sequence[Block]]:
    """Measure blocks of all three kinds, repetition by repetition. Raises RuntimeError when there is no pgbench."""
    settings = {"server_idle_seconds": "2"}
    script = folder / "hold.sql"
    script.write_text(f"select pg_sleep({HOLD_MS / 1000});\n")
    found: dict[str, list[Block]] = {SHARED: [], BIG: [], SPLIT: []}
    with (
        running_database(3 * BUDGET + 40) as database,
        running_fleet(database, program, TERMS, settings) as shared,
        running_alone(database, program, [BUDGET], settings) as big,
        running_alone(database, program, [BUDGET // TASKS] * TASKS, settings) as split,
    ):
        pgbench = pgbench_of(database)
        fleets = {SHARED: shared, BIG: big, SPLIT: split}
        for repetition in range(repetitions + 1):
            progress(f"skew {repetition} of {repetitions}: {len(fleets)} blocks")
            for name in random.sample(list(fleets), len(fleets)):
                block = _block(pgbench, script, fleets[name], seconds if repetition else LEAD_IN_SECONDS + 1)
                if repetition:
                    found[name].append(block)
    return found


def _block(pgbench: str, script: Path, fleet: RunningFleet, seconds: int) -> Block:
    # The quiet clients are spread over the other tasks; one big pool has both kinds.
    busy_task, *quiet_tasks = fleet.tasks
    quiet_tasks = quiet_tasks or [busy_task]
    busy_clients = round(BUSY_SHARE * CLIENTS)
    quiet_each = (CLIENTS - busy_clients) // len(quiet_tasks)
    busy = _pgbench(pgbench, script, busy_task, busy_clients, seconds)
    quiet = [_pgbench(pgbench, script, task, quiet_each, seconds) for task in quiet_tasks]
    return Block(_side(busy, seconds), _together([_side(process, seconds) for process in quiet]))


def _pgbench(pgbench: str, script: Path, task: RunningTask, clients: int, seconds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            pgbench,
            "--no-vacuum",
            f"--file={script}",
            f"--client={clients}",
            "--jobs=1",
            f"--time={seconds}",
            "--progress=1",
        ],
        env=task.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _together(sides: Sequence[Side]) -> Side:
    """Return what the clients of all these tasks saw: their rates summed, the mean of their latencies."""
    seconds = min(len(side.rates) for side in sides)
    rates = [sum(side.rates[second] for side in sides) for second in range(seconds)]
    latencies = [
        sum(side.rates[second] * side.latencies_ms[second] for side in sides) / (rates[second] or 1.0)
        for second in range(seconds)
    ]
    return Side(rates, latencies)


def _side(process: subprocess.Popen[str], seconds: int) -> Side:
    _, errors = process.communicate(timeout=seconds + 60)
    side = side_of(errors, seconds)
    if process.returncode or side is None:
        raise RuntimeError(f"pgbench: {errors.strip()[-500:]}")
    return side


def side_of(output: str, seconds: int) -> Side | None:
    """Return what pgbench said, a zero for each second without a line; None when the measured ones have too few.

    While its clients log in pgbench says nothing, and so it does when the machine is too busy for it.
    """
    rates, latencies_ms = [0.0] * seconds, [0.0] * seconds
    seen = set()
    for at, rate, latency in PROGRESS.findall(output):
        second = min(max(round(float(at)), 1), seconds) - 1
        rates[second], latencies_ms[second] = float(rate), float(latency)
        seen.add(second)
    measured = seen & set(range(LEAD_IN_SECONDS, seconds))
    if len(measured) < seconds - LEAD_IN_SECONDS - 1:
        return None
    # One line may be missing: its second is what the one before it was.
    for second in range(LEAD_IN_SECONDS, seconds):
        if second not in seen:
            rates[second], latencies_ms[second] = rates[second - 1], latencies_ms[second - 1]
    return Side(rates, latencies_ms)
