"""One run of pgbench on one way to the database, and the CPU that it costs there while all clients are at work."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.postgres.program import PostgresProgram

REPORT_SECONDS = 1
LOGIN_SECONDS = 180  # at most, of all clients; pgbench counts its time from the first login on
REPORT = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps, lat ([\d.]+) ms")
FAILURE = re.compile(r"error|aborted|FATAL")


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

    def read(self) -> tuple[float, float]:
        """Return the proxy's and the database's."""
        return self.proxy(), self.database()


def pgbench_path(program: PostgresProgram) -> str:
    """Return the pgbench program. Raises RuntimeError when there is none."""
    own: Path = program.bin_folder / "pgbench"
    found = str(own) if own.exists() else shutil.which("pgbench")
    if found is None:
        raise RuntimeError("pgbench was not found; it comes with PostgreSQL's server packages")
    return found


def started(
    pgbench: str, environment: Mapping[str, str], clients: int, seconds: int, arguments: Sequence[str]
) -> subprocess.Popen[str]:
    """Start so many clients, for so many seconds; its reports are lines of stderr."""
    command = [
        pgbench,
        "--no-vacuum",
        f"--client={clients}",
        f"--time={seconds}",
        f"--progress={REPORT_SECONDS}",
        *arguments,
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run_block(
    pgbench: str, environment: Mapping[str, str], clients: int, seconds: int, arguments: Sequence[str], cpu: Cpu
) -> Block:
    """Run so many clients for `seconds` after a lead-in of one report, in which pools open their connections.

    Raises RuntimeError when a client fails.
    """
    with started(pgbench, environment, clients, LOGIN_SECONDS + seconds, arguments) as process:
        try:
            assert process.stderr is not None
            return _block(process.stderr, seconds, cpu)
        finally:
            process.terminate()  # what is measured has been reported


def _block(lines: Iterable[str], seconds: int, cpu: Cpu) -> Block:
    """Return what the reports say, from the second one with transactions on."""
    before, begun_at, until = (0.0, 0.0), 0.0, 0.0
    count = latency_ms = 0.0
    for line in lines:
        if FAILURE.search(line):
            raise RuntimeError(f"pgbench: {line.strip()}")
        report = REPORT.search(line)
        if report is None or not float(report[2]):
            continue  # clients still log in
        reported_at = float(report[1])
        if not begun_at:
            before, begun_at, until = cpu.read(), reported_at, reported_at
            continue
        transactions = float(report[2]) * (reported_at - until)
        count, latency_ms, until = count + transactions, latency_ms + transactions * float(report[3]), reported_at
        if until - begun_at >= seconds - REPORT_SECONDS / 2:
            proxy, database = ((end - begin) / count * 1e6 for begin, end in zip(before, cpu.read(), strict=True))
            return Block(count / (until - begun_at), latency_ms / count, proxy, database)
    raise RuntimeError("pgbench ended before it had measured anything")
