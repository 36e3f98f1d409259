"""What the layer costs on the warm path: an invocation with one statement, against what a user would pick instead.

All ways run in this process against one embedded PostgreSQL over loopback without TLS: the quickest path makes the
greatest ratio. They take turns in short blocks, so that a noisy machine hits all of them alike.
"""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from benchmarks.command import Progress
from benchmarks.layer.cores import Cores, confirm, on
from benchmarks.layer.relay import running_relay
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from emberpool import settings as names
from emberpool_local.postgres.server import EmbeddedPostgres

Invoke = Callable[[], object]
RAW = "raw psycopg, a global connection"
LAYER = "emberpool: @warm_connection"
LAYER_PIPELINED = "emberpool: pipeline_begin on"
BLOCK = 50
COUNTED = 100  # invocations for counting round trips: the count is exact
PIPELINED_DATABASE = "pipelined"


class Context:
    """Lambda's context object as far as the layer reads it."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


@dataclass(frozen=True)
class WarmPath:
    """By way: the median duration of an invocation in each repetition, and its round trips to the server."""

    durations_us: Mapping[str, list[float]]
    round_trips: Mapping[str, float]
    invocations: int


def measure(cores: Cores, repetitions: int, invocations: int, progress: Progress) -> WarmPath:
    """Measure all ways; `invocations` per repetition and way."""
    with on(cores.servers):
        postgres = EmbeddedPostgres()
        postgres.__enter__()
    try:
        confirm(cores.servers)
        with on(cores.measured):
            round_trips = _round_trips(postgres)
            ways = _ways(postgres, postgres.port)
            _repetition(ways, invocations // 4)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for repetition in range(1, repetitions + 1):
                progress(f"warm path {repetition} of {repetitions}: {len(ways)} ways")
                for name, duration_us in _repetition(ways, invocations).items():
                    found[name].append(duration_us)
        return WarmPath(found, round_trips, invocations)
    finally:
        postgres.__exit__(None, None, None)


def _repetition(ways: Mapping[str, Invoke], invocations: int) -> dict[str, float]:
    durations_ns: dict[str, list[int]] = {name: [] for name in ways}
    for _ in range(max(1, invocations // BLOCK)):
        for name in random.sample(list(ways), len(ways)):
            invoke, durations = ways[name], durations_ns[name]
            for _ in range(BLOCK):
                began = time.perf_counter_ns()
                invoke()
                durations.append(time.perf_counter_ns() - began)
    return {name: statistics.median(durations) / 1000 for name, durations in durations_ns.items()}


def _round_trips(postgres: EmbeddedPostgres) -> dict[str, float]:
    counts = {}
    with running_relay(postgres.port) as relay:
        for name, invoke in _ways(postgres, relay.port).items():
            for _ in range(20):  # psycopg prepares a statement after a few executions
                invoke()
            relay.turns()
            for _ in range(COUNTED):
                invoke()
            counts[name] = relay.turns() / COUNTED
    return counts


def _ways(postgres: EmbeddedPostgres, port: int) -> dict[str, Invoke]:
    conninfo = make_conninfo(postgres.conninfo(), port=port)
    layer_variables = {
        names.HOST: postgres.host,
        names.PORT: str(port),
        names.USER: postgres.superuser,
        names.PASSWORD: postgres.superuser_password,
        names.SSLMODE: "disable",
        names.variable("host", PIPELINED_DATABASE): postgres.host,
        names.variable("pipeline_begin", PIPELINED_DATABASE): "on",
    }
    os.environ.update(layer_variables)
    ways = {
        RAW: _raw(conninfo),
        'raw psycopg, checked by execute("")': _raw_with_check(conninfo),
        "psycopg_pool, check=check_connection": _pool_with_check(conninfo),
        "SQLAlchemy, pool_pre_ping=True": _sqlalchemy(postgres, port),
        LAYER: _layer(None),
        LAYER_PIPELINED: _layer(PIPELINED_DATABASE),
    }
    if importlib.util.find_spec("emberpool.sqlalchemy"):
        ways["emberpool.sqlalchemy.engine()"] = _layers_engine()
    return ways


def _raw(conninfo: str) -> Invoke:
    """Follow the usual advice: a module-level connection, no check, one transaction per invocation."""
    connection = psycopg.connect(conninfo)

    def invoke() -> object:
        row = connection.execute("select 1").fetchone()
        connection.commit()
        return row

    return invoke


def _raw_with_check(conninfo: str) -> Invoke:
    """Add the check that people add after their first dead connection."""
    connection = psycopg.connect(conninfo)

    def invoke() -> object:
        connection.execute("")
        row = connection.execute("select 1").fetchone()
        connection.commit()
        return row

    return invoke


def _pool_with_check(conninfo: str) -> Invoke:
    pool = ConnectionPool(conninfo, min_size=1, max_size=1, check=ConnectionPool.check_connection, open=True)
    pool.wait()

    def invoke() -> object:
        with pool.connection() as connection:
            return connection.execute("select 1").fetchone()

    return invoke


def _sqlalchemy(postgres: EmbeddedPostgres, port: int) -> Invoke:
    import sqlalchemy  # noqa: PLC0415 (a second of imports)

    url = sqlalchemy.URL.create(
        "postgresql+psycopg", postgres.superuser, postgres.superuser_password, postgres.host, port, "postgres"
    )
    return _by_engine(sqlalchemy.create_engine(url, pool_pre_ping=True, pool_size=1))


def _layers_engine() -> Invoke:
    """Use the layer's engine in its handler, as a function does."""
    warm = importlib.import_module("emberpool.sqlalchemy")
    layer = importlib.import_module("emberpool")
    invoke = _by_engine(warm.engine())
    handler = layer.warm_connection(transaction=False)(lambda _event, _context: invoke())
    context = Context()
    return lambda: handler({}, context)


def _by_engine(engine: Any) -> Invoke:
    from sqlalchemy import text  # noqa: PLC0415 (as above)

    statement = text("select 1")

    def invoke() -> object:
        with engine.begin() as connection:
            return connection.execute(statement).fetchone()

    return invoke


def _layer(database: str | None) -> Invoke:
    """Use the decorator: the connection checked, a statement timeout from the invocation's deadline."""
    from emberpool import warm_connection  # noqa: PLC0415 (psycopg's first import is measured elsewhere)

    @warm_connection(database=database)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> object:
        del event, context
        return connection.execute("select 1").fetchone()

    context = Context()
    return lambda: handler({}, context)
