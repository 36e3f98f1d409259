"""How long until all of the load is served again: the database was away, PgBouncer was killed, a pool was replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.command import Progress
from benchmarks.proxy.contenders import (
    BARE,
    OURS,
    Contender,
    running_bare_pgbouncer,
    running_emberpool,
)
from benchmarks.proxy.observation import Recovery, observed
from benchmarks.proxy.processes import descendants
from benchmarks.proxy.replacement import replaced
from benchmarks.proxy.secured_database import SecuredDatabase, running_secured_database

from emberpool_local.pgbouncer.program import PgbouncerProgram

MAX_CONNECTIONS = 100
DATABASE_AWAY, POOL_KILLED, POOL_REPLACED = "the database restarts", "PgBouncer is killed", "the pool is replaced"
FAULTS = (DATABASE_AWAY, POOL_KILLED, POOL_REPLACED)
NAMES = (BARE, OURS)

Recoveries = Mapping[str, Mapping[str, list[Recovery]]]


def measure(program: PgbouncerProgram, repetitions: int, outage_seconds: float, progress: Progress) -> Recoveries:
    """Return what was seen by fault and way. Raises RuntimeError when a pool does not recover at all."""
    found: dict[str, dict[str, list[Recovery]]] = {fault: {name: [] for name in NAMES} for fault in FAULTS}
    with running_secured_database(MAX_CONNECTIONS) as database:
        for repetition in range(1, repetitions + 1):
            for fault, ways in found.items():
                for name in random.sample(NAMES, len(NAMES)):
                    recovery = _one(fault, name, database, program, outage_seconds)
                    ways[name].append(recovery)
                    progress(
                        f"recovery {repetition} of {repetitions}: {fault}, {name}: {recovery.seconds:.2f} s, "
                        f"{recovery.failed} clients told of an error"
                    )
    return found


def _one(
    fault: str, name: str, database: SecuredDatabase, program: PgbouncerProgram, outage_seconds: float
) -> Recovery:
    if fault == POOL_REPLACED:
        return replaced(name, database, program)
    with _running(name, database, program) as (contender, restart):
        if fault == DATABASE_AWAY:
            return observed(contender.target, lambda: _restart_database(database, outage_seconds))
        return observed(contender.target, lambda: _kill_pgbouncer(contender, restart))


@contextmanager
def _running(
    name: str, database: SecuredDatabase, program: PgbouncerProgram
) -> Iterator[tuple[Contender, Callable[[], None] | None]]:
    """Run one way; what starts its PgBouncer again is None where it does so itself."""
    if name == OURS:
        with running_emberpool(database, program) as ours:
            yield ours, None
    else:
        with running_bare_pgbouncer(database, program) as bare:
            yield bare.contender(), bare.start


def _restart_database(database: SecuredDatabase, outage_seconds: float) -> float:
    database.postgres.stop("fast")
    time.sleep(outage_seconds)
    database.postgres.start()
    return time.monotonic()


def _kill_pgbouncer(contender: Contender, restart: Callable[[], None] | None) -> float:
    engine = contender.root if restart else _engine(contender.root)
    killed_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    if restart:
        restart()  # at once: no supervisor of processes is faster
    return killed_at


def _engine(supervisor: int) -> int:
    for pid in descendants(supervisor):
        if b"pgbouncer.ini" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise RuntimeError("the task has no PgBouncer")
