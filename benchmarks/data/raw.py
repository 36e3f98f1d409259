"""psycopg at the same PgBouncer, with nothing between: what a function that has the driver in its bundle would see.

`python -m benchmarks.data.raw`, with the plan as JSON on standard input and the connection by libpq's variables. One
connection is psycopg's synchronous one, which is the fastest; several are asynchronous ones in one process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import psycopg
from benchmarks.data.window import Load, Window, run_measured


@dataclass(frozen=True)
class Plan:
    """What to run, on how many connections, and for how long after `lead_in_seconds`."""

    sql: str
    connections: int
    seconds: float
    lead_in_seconds: float = 0.3
    processes: dict[str, int] = field(default_factory=dict)


def run(plan: Plan, environment: Mapping[str, str]) -> Load:
    """Run the load in a process of its own. Raises RuntimeError when anything failed."""
    return run_measured("benchmarks.data.raw", asdict(plan), plan.seconds, environment)


async def _measure(plan: Plan) -> Load:
    window = Window(plan.processes)
    if plan.connections == 1:
        with psycopg.connect(autocommit=True) as connection:
            window.open(plan.lead_in_seconds, plan.seconds)
            # In a thread: the loop takes the CPU times.
            await asyncio.to_thread(_repeat, connection, plan.sql.encode(), window)
        return window.load()
    connections = [await psycopg.AsyncConnection.connect(autocommit=True) for _ in range(plan.connections)]
    window.open(plan.lead_in_seconds, plan.seconds)
    await asyncio.gather(*(_repeat_async(connection, plan.sql.encode(), window) for connection in connections))
    for each in connections:
        await each.close()
    return window.load()


def _repeat(connection: psycopg.Connection, sql: bytes, window: Window) -> None:
    goes_on = True
    while goes_on:
        sent_at = window.sent()
        connection.execute(sql).fetchall()
        goes_on = window.answered(sent_at)


async def _repeat_async(connection: psycopg.AsyncConnection, sql: bytes, window: Window) -> None:
    goes_on = True
    while goes_on:
        sent_at = window.sent()
        await (await connection.execute(sql)).fetchall()
        goes_on = window.answered(sent_at)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(asyncio.run(_measure(Plan(**json.load(sys.stdin)))))))
