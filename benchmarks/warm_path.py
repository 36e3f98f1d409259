"""What the layer costs on the warm path: one invocation with one statement, against what a user would pick instead.

All ways run in one process against one embedded PostgreSQL over loopback without TLS, in alternating repetitions, so
that a noisy machine hits all of them alike. Printed: the median of the repetitions' medians in microseconds, their
spread, and the ratio to raw psycopg on a global connection. Run it by `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool
from rich.console import Console
from rich.table import Table

from emberpool import settings as names
from emberpool_local.postgres.server import EmbeddedPostgres

Invoke = Callable[[], object]
BASELINE = "raw psycopg, a global connection"


class Context:
    """Lambda's context object as far as the layer reads it."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def raw_global(conninfo: str) -> Invoke:
    """Follow the usual advice: a module-level connection, no check, one transaction per invocation."""
    connection = psycopg.connect(conninfo)

    def invoke() -> object:
        row = connection.execute("select 1").fetchone()
        connection.commit()
        return row

    return invoke


def raw_with_check(conninfo: str) -> Invoke:
    """Add the check that people add after their first dead connection."""
    connection = psycopg.connect(conninfo)

    def invoke() -> object:
        connection.execute("")
        row = connection.execute("select 1").fetchone()
        connection.commit()
        return row

    return invoke


def pool_with_check(conninfo: str) -> Invoke:
    """psycopg_pool with one connection and its own check."""
    pool = ConnectionPool(conninfo, min_size=1, max_size=1, check=ConnectionPool.check_connection, open=True)
    pool.wait()

    def invoke() -> object:
        with pool.connection() as connection:
            return connection.execute("select 1").fetchone()

    return invoke


def warm() -> Invoke:
    """Use emberpool's layer: checked, with a statement timeout from the invocation's deadline."""
    from emberpool import warm_connection  # noqa: PLC0415 (it reads the environment)

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> object:
        del event, context
        return connection.execute("select 1").fetchone()

    context = Context()
    return lambda: handler({}, context)


def median_us(invoke: Invoke, invocations: int) -> float:
    """Return the median duration of one invocation in microseconds."""
    durations = []
    for _ in range(invocations):
        began = time.perf_counter_ns()
        invoke()
        durations.append(time.perf_counter_ns() - began)
    return statistics.median(durations) / 1000


def measure(ways: dict[str, Invoke], repetitions: int, invocations: int) -> dict[str, list[float]]:
    """Return each way's medians, one for each repetition, measured in turns and in random order."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name in random.sample(list(ways), len(ways)):
            found[name].append(median_us(ways[name], invocations))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--invocations", type=int, default=1000, help="per repetition and way")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with EmbeddedPostgres() as postgres:
        os.environ |= {
            names.HOST: postgres.host,
            names.PORT: str(postgres.port),
            names.USER: postgres.superuser,
            names.PASSWORD: postgres.superuser_password,
            names.SSLMODE: "disable",
        }
        ways = {
            BASELINE: raw_global(postgres.conninfo()),
            'raw psycopg, checked by execute("")': raw_with_check(postgres.conninfo()),
            "psycopg_pool, checked": pool_with_check(postgres.conninfo()),
            "emberpool's layer": warm(),
        }
        measure(ways, 1, options.invocations)  # warm up
        found = measure(ways, options.repetitions, options.invocations)
    if options.json:
        print(json.dumps(found))
        return
    table = Table("one invocation, one statement", "µs, median", "spread", "ratio to raw", "spread of the ratio")
    for name, medians in found.items():
        # Each repetition against the same repetition's baseline: what slows the machine slows both.
        ratios = sorted(one / base for one, base in zip(medians, found[BASELINE], strict=True))
        table.add_row(
            name,
            f"{statistics.median(medians):.0f}",
            f"{min(medians):.0f} to {max(medians):.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        )
    Console().print(table)
    Console().print(f"{options.repetitions} alternating repetitions of {options.invocations} invocations each")


if __name__ == "__main__":
    main()
