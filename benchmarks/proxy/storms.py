"""Thousands of clients that log in at once over TLS and SCRAM and then stay: our proxy and the bare PgBouncer in turn.

Each repetition starts both anew: what PgBouncer has once allocated it keeps, so memory is that of its first storm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from benchmarks.proxy.clients import ClientProcess, running_clients
from benchmarks.proxy.pair import Database, Pool, cpu_seconds, resident_mib, running_bare_copy, running_proxy

from emberpool_local.pgbouncer.program import PgbouncerProgram

SETTLE_SECONDS = 1.0
MOST_CLIENTS = 8000


@dataclass(frozen=True)
class Held:
    """One storm on one pool and what its clients cost while they stay."""

    logins_per_second: float
    failures: dict[str, int]
    login_cpu_us: float  # of PgBouncer
    kib_per_client: float  # of PgBouncer
    task_mib: float  # of all processes of the pool


@dataclass(frozen=True)
class AgentCost:
    """What the agent used while the clients were held."""

    cpu_percent: float  # of one core
    supervisor_cpu_percent: float
    resident_mib: float


@dataclass(frozen=True)
class Repetition:
    """Everything of one start of both pools."""

    start_seconds: float  # from the process's start to the first row of a query
    start_cpu_seconds: float  # what a quiet machine with cores enough would need at least
    ours: Held
    bare: Held
    agent: AgentCost


def measure(
    database: Database, program: PgbouncerProgram, repetitions: int, clients: int, hold_seconds: float
) -> list[Repetition]:
    """Measure `repetitions` times; `hold_seconds` is how long the agent is watched."""
    with running_clients() as generator:
        return [
            _repetition(database, program, generator, clients, hold_seconds, bare_first=bool(number % 2))
            for number in range(repetitions)
        ]


def _repetition(
    database: Database,
    program: PgbouncerProgram,
    generator: ClientProcess,
    clients: int,
    hold_seconds: float,
    bare_first: bool,
) -> Repetition:
    began = time.monotonic()
    with running_proxy(database, program) as (ours, proxy):
        with psycopg.connect(proxy.conninfo()) as connection:
            connection.execute("select 1").fetchone()
        start_seconds = time.monotonic() - began
        start_cpu_seconds = sum(map(cpu_seconds, ours.processes))
        with running_bare_copy(ours, proxy, program) as bare:
            held: dict[str, Held] = {}
            agent = AgentCost(0.0, 0.0, 0.0)
            for pool in (bare, ours) if bare_first else (ours, bare):
                with _held(pool, generator, clients) as held[pool.name]:
                    if pool is ours:
                        agent = _agent_cost(ours, hold_seconds)
    return Repetition(start_seconds, start_cpu_seconds, held[ours.name], held[bare.name], agent)


@contextmanager
def _held(pool: Pool, generator: ClientProcess, clients: int) -> Iterator[Held]:
    before_mib, before_cpu = resident_mib([pool.pgbouncer]), cpu_seconds(pool.pgbouncer)
    storm = generator.connect(pool.target, clients)
    cpu = cpu_seconds(pool.pgbouncer) - before_cpu
    kib = (resident_mib([pool.pgbouncer]) - before_mib) * 1024
    try:
        yield Held(
            logins_per_second=storm.logins_per_second,
            failures=storm.failures,
            login_cpu_us=cpu / clients * 1e6,
            kib_per_client=kib / clients,
            task_mib=resident_mib(pool.processes),
        )
    finally:
        generator.close()
        time.sleep(SETTLE_SECONDS)  # PgBouncer forgets them before the other one is measured


def _agent_cost(pool: Pool, seconds: float) -> AgentCost:
    before = [cpu_seconds(pid) for pid in (pool.agent, pool.supervisor)]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    agent, supervisor = (
        100 * (cpu_seconds(pid) - earlier) / passed
        for pid, earlier in zip((pool.agent, pool.supervisor), before, strict=True)
    )
    return AgentCost(agent, supervisor, resident_mib([pool.agent]))
