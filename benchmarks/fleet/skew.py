"""Skewed load on two tasks: one shared budget against one big pool with all of it, and against two equal halves.

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

from benchmarks.fleet.rig import FleetTerms, RunningFleet, pgbench_of, running_alone, running_database, running_fleet

from emberpool_local.pgbouncer.program import PgbouncerProgram

BUDGET = 100
TASKS = 2
TERMS = FleetTerms(tasks=TASKS, slots=BUDGET - TASKS * 4)
CLIENTS = 2 * BUDGET
BUSY_SHARE = 0.9
HOLD_MS = 25  # as 10 ms with 40 connections: what the cores bear
LEAD_IN_SECONDS = 5  # of a block: slots move, and PgBouncer opens connections one after the other
SHARED, BIG, HALVES = "one shared budget", "one big pool", "two halves"
PROGRESS = re.compile(r"progress: [\d.]+ s, ([\d.]+) tps, lat ([\d.]+) ms")


@dataclass(frozen=True)
class Side:
    """What the clients of one task saw, second by second."""

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


def measure(program: PgbouncerProgram, repetitions: int, seconds: int, folder: Path) -> Mapping[str, Sequence[Block]]:
    """Measure blocks of all three kinds, repetition by repetition. Raises RuntimeError when there is no pgbench."""
    settings = {"server_idle_seconds": "2"}
    script = folder / "hold.sql"
    script.write_text(f"select pg_sleep({HOLD_MS / 1000});\n")
    found: dict[str, list[Block]] = {SHARED: [], BIG: [], HALVES: []}
    with (
        running_database(3 * BUDGET + 40) as database,
        running_fleet(database, program, TERMS, settings) as shared,
        running_alone(database, program, [BUDGET], settings) as big,
        running_alone(database, program, [BUDGET // 2, BUDGET // 2], settings) as halves,
    ):
        pgbench = pgbench_of(database)
        fleets = {SHARED: shared, BIG: big, HALVES: halves}
        for repetition in range(repetitions + 1):
            for name in random.sample(list(fleets), len(fleets)):
                block = _block(pgbench, script, fleets[name], seconds if repetition else LEAD_IN_SECONDS + 1)
                if repetition:
                    found[name].append(block)
    return found


def _block(pgbench: str, script: Path, fleet: RunningFleet, seconds: int) -> Block:
    busy_clients = round(BUSY_SHARE * CLIENTS)
    counts = (busy_clients, CLIENTS - busy_clients)
    tasks = (fleet.tasks[0], fleet.tasks[-1])  # one big pool has both kinds of clients
    running = [
        subprocess.Popen(
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
        for task, clients in zip(tasks, counts, strict=True)
    ]
    busy, quiet = (_side(process, seconds) for process in running)
    return Block(busy, quiet)


def _side(process: subprocess.Popen[str], seconds: int) -> Side:
    _, errors = process.communicate(timeout=seconds + 60)
    lines = [(float(rate), float(latency)) for rate, latency in PROGRESS.findall(errors)]
    if process.returncode or len(lines) < seconds - 1:
        raise RuntimeError(f"pgbench: {errors.strip()[-500:]}")
    return Side([rate for rate, _ in lines], [latency for _, latency in lines])
