"""Transactions a second through our proxy and through the bare PgBouncer, by pgbench, in short alternating blocks."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxy.pair import Database, Pool, cpu_seconds, running_bare_copy, running_proxy

from emberpool_local.pgbouncer.program import PgbouncerProgram

CLIENTS = 20
# As the layer runs an invocation: the deadline rides with BEGIN, a query, COMMIT.
INVOCATION = """\
\\set aid random(1, 100000)
begin \\; set local statement_timeout = '29s';
select abalance from pgbench_accounts where aid = :aid;
commit;
"""
SELECT, PREPARED, LAYER = "one SELECT", "one SELECT, prepared", "BEGIN; SET LOCAL, SELECT, COMMIT"
OURS, BARE, RESET = "emberpool", "bare PgBouncer", "emberpool, reset_policy always"


@dataclass(frozen=True)
class Block:
    """One run of pgbench on one pool; the CPU is that of all of the pool's processes, the agent's included."""

    transactions_per_second: float
    cpu_us_per_transaction: float


@dataclass(frozen=True)
class Throughput:
    """Blocks by workload and pool, repetition by repetition; whether clients used TLS."""

    by_workload: Mapping[str, Mapping[str, Sequence[Block]]]
    tls: bool


def measure(
    database: Database, program: PgbouncerProgram, folder: Path, repetitions: int, block_seconds: int
) -> Throughput:
    """Measure all workloads on all pools. Raises RuntimeError when there is no pgbench."""
    pgbench = _pgbench(database)
    has_tls = database.postgres.program.has_tls  # pgbench is of the same build
    settings = {"client_tls_mode": "require" if has_tls else "disable"}
    script = folder / "invocation.sql"
    script.write_text(INVOCATION)
    workloads = {
        SELECT: ("--select-only", "--protocol=simple"),
        PREPARED: ("--select-only", "--protocol=prepared"),
        LAYER: (f"--file={script}",),
    }
    _fill(pgbench, database)
    found: dict[str, dict[str, list[Block]]] = {name: {OURS: [], BARE: [], RESET: []} for name in workloads}
    with ExitStack() as stack:
        ours, proxy = stack.enter_context(running_proxy(database, program, settings))
        bare = stack.enter_context(running_bare_copy(ours, proxy, program))
        reset, _ = stack.enter_context(running_proxy(database, program, settings | {"reset_policy": "always"}))
        pools = {OURS: ours, BARE: bare, RESET: reset}
        for repetition in range(repetitions + 1):
            for workload, arguments in workloads.items():
                for name in random.sample(list(pools), len(pools)):
                    block = _block(pgbench, pools[name], arguments, block_seconds, has_tls)
                    if repetition:  # the first one opens connections and fills caches
                        found[workload][name].append(block)
    return Throughput(found, has_tls)


def _pgbench(database: Database) -> str:
    own = database.postgres.program.bin_folder / "pgbench"
    found = str(own) if own.exists() else shutil.which("pgbench")
    if found is None:
        raise RuntimeError("pgbench was not found; it comes with PostgreSQL's server packages")
    return found


def _fill(pgbench: str, database: Database) -> None:
    access = database.access
    environment = {
        "PGHOST": access.host,
        "PGPORT": str(access.port),
        "PGUSER": access.user,
        "PGPASSWORD": access.password,
        "PGDATABASE": access.name,
    }
    subprocess.run([pgbench, "--initialize", "--quiet"], env=environment, check=True, capture_output=True)


def _block(pgbench: str, pool: Pool, arguments: Sequence[str], seconds: int, tls: bool) -> Block:
    command = [pgbench, "--no-vacuum", f"--client={CLIENTS}", "--jobs=1", f"--time={seconds}", *arguments]
    before = sum(map(cpu_seconds, pool.processes))
    ran = subprocess.run(command, env=pool.environment(tls), check=False, capture_output=True, text=True)
    cpu = sum(map(cpu_seconds, pool.processes)) - before
    rate = re.search(r"tps = ([\d.]+)", ran.stdout)
    count = re.search(r"actually processed: (\d+)", ran.stdout)
    if ran.returncode or rate is None or count is None:
        raise RuntimeError(f"pgbench on {pool.name}: {ran.stderr.strip()[-500:]}")
    return Block(float(rate[1]), cpu / int(count[1]) * 1e6)
