"""One run of pgbench on one way to the database, and the CPU that it costs there while all clients are at work."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.postgres.program import PostgresProgram

LEAD_IN_SECONDS = 1  # until pgbench's first report: prepared statements are made, pools open connections
BEFORE_THE_END_SECONDS = 0.05  # the second reading of the CPU is taken while all clients still work
LOGIN_SECONDS = 120.0
LEAST_SHARE = 0.5  # of the block that must be left after the first report
TRIES = 5
COUNT = re.compile(r"actually processed: (\d+)")
LATENCY = re.compile(r"latency average = ([\d.]+) ms")
REPORT = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps")


@dataclass(frozen=True)
class Block:
    """One run: transactions a second and mean latency, and the CPU of a transaction in the way and in the database."""

    transactions_per_second: float
    latency_ms: float
    proxy_cpu_us: float
    database_cpu_us: float


@dataclass(frozen=True)
class Cpu:
    """How the two processor times are read, in seconds."""

    proxy: Callable[[], float]
    database: Callable[[], float]

    def read(self) -> tuple[float, float, float]:
        """Return the time, the proxy's and the database's."""
        return time.monotonic(), self.proxy(), self.database()


def pgbench_path(program: PostgresProgram) -> str:
    """Return the pgbench program. Raises RuntimeError when there is none."""
    own: Path = program.bin_folder / "pgbench"
    found = str(own) if own.exists() else shutil.which("pgbench")
    if found is None:
        raise RuntimeError("pgbench was not found; it comes with PostgreSQL's server packages")
    return found


def run_block(
    pgbench: str, environment: Mapping[str, str], clients: int, seconds: int, arguments: Sequence[str], cpu: Cpu
) -> Block:
    """Run so many clients for a lead-in and `seconds`; again where the machine was too busy to read its CPU in time.

    Raises RuntimeError when a client fails.
    """
    for length in range(seconds, seconds * TRIES + 1, seconds):  # a longer one the next time
        command = [
            pgbench,
            "--no-vacuum",
            f"--client={clients}",
            "--jobs=1",
            f"--time={LEAD_IN_SECONDS + length}",
            f"--progress={LEAD_IN_SECONDS}",
            *arguments,
        ]
        if block := _tried(command, environment, length, cpu):
            return block
    raise RuntimeError(f"pgbench with {clients} clients reported too late {TRIES} times: the machine is too busy")


def _tried(command: Sequence[str], environment: Mapping[str, str], seconds: int, cpu: Cpu) -> Block | None:
    """Return what was measured; None when pgbench's first report came so late that little was left of the block."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        overdue = threading.Timer(LOGIN_SECONDS + seconds, process.kill)
        overdue.start()
        try:
            window = _watch(process, seconds, cpu)
            output, more_errors = process.communicate()
        finally:
            overdue.cancel()
    if process.returncode:
        text = (window.errors + more_errors).strip()[-500:]
        raise RuntimeError(f"pgbench ended with {process.returncode}: {text}")
    count, latency = COUNT.search(output), LATENCY.search(output)
    if not window.readings or count is None or latency is None:
        return None
    before, after = window.readings
    rate = (int(count[1]) - window.first_count) / (LEAD_IN_SECONDS + seconds - window.first_seconds)
    transactions = rate * (after[0] - before[0])
    if transactions <= 0:
        return None
    proxy, database = ((after[of] - before[of]) / transactions * 1e6 for of in (1, 2))
    return Block(rate, float(latency[1]), proxy, database)


@dataclass(frozen=True)
class _Window:
    """What was seen while pgbench ran: its first report, and the CPU then and shortly before the end."""

    errors: str
    first_seconds: float = 0.0
    first_count: float = 0.0
    readings: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


def _watch(process: subprocess.Popen[str], seconds: int, cpu: Cpu) -> _Window:
    assert process.stderr is not None
    errors = ""
    for line in process.stderr:
        if report := REPORT.search(line):
            first_seconds, first_rate = float(report[1]), float(report[2])
            left = LEAD_IN_SECONDS + seconds - first_seconds - BEFORE_THE_END_SECONDS
            if left < LEAST_SHARE * seconds:
                break
            before = cpu.read()
            time.sleep(left)
            return _Window(errors, first_seconds, first_seconds * first_rate, (before, cpu.read()))
        errors += line
    return _Window(errors)
