"""`python -m benchmarks.proxy.steady_clients`: a steady load, paced by its clients and not by the answers.

Each client has a connection and asks for a row at its beats; one that is still waiting leaves beats out, as an
environment does whose invocations go elsewhere. A client whose connection broke logs in again at its next beat, and one
that sees that its server has closed the connection while it was idle, as the layer looks, does so before it asks. The
plan is JSON on standard input; each line of the output is a beat (CLOCK_MONOTONIC) and what became of it: "served"
before the next beat, "late", or "failed". It ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

import psycopg
from benchmarks.proxy.clients import Target

CONNECT_SECONDS = 10
FLUSH_SECONDS = 0.05
SERVED, LATE, FAILED = "served", "late", "failed"


@dataclass(frozen=True)
class Plan:
    """How many clients ask how often."""

    clients: int
    period_seconds: float

    @property
    def per_second(self) -> float:
        return self.clients / self.period_seconds


@dataclass(frozen=True)
class SteadyLoad:
    """A load that runs: the beats that were served in time, and those that failed, until now."""

    plan: Plan
    served: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    def read(self, process: subprocess.Popen[str]) -> None:
        """Take in what the process writes until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            beat, outcome = line.split()
            if outcome != LATE:
                (self.served if outcome == SERVED else self.failed).append(float(beat))


@contextmanager
def steady_load(plan: Plan, target: Target) -> Iterator[SteadyLoad]:
    """Run the clients in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.proxy.steady_clients"]
    load = SteadyLoad(plan)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"plan": asdict(plan), "target": vars(target)}) + "\n")
        process.stdin.flush()
        reader = threading.Thread(target=load.read, args=(process,), daemon=True)
        reader.start()
        try:
            yield load
        finally:
            process.stdin.close()
            process.wait()
            reader.join()


class _Client:
    """One client and its connection."""

    def __init__(self, conninfo: str, written: list[str]) -> None:
        self._conninfo = conninfo
        self._written = written
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    async def run(self, first_beat: float, period_seconds: float) -> None:
        beat = first_beat
        while True:
            await asyncio.sleep(beat - time.monotonic())
            try:
                await self._ask()
                outcome = SERVED if time.monotonic() - beat < period_seconds else LATE
            except psycopg.Error:
                await self._close()
                outcome = FAILED
            self._written.append(f"{beat:.4f} {outcome}\n")
            beat += period_seconds * max(1, -((beat - time.monotonic()) // period_seconds))

    async def _ask(self) -> None:
        if self._connection is not None and _has_said_something(self._connection):
            await self._close()
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_SECONDS
            )
        await self._connection.execute("select 1")

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()


def _has_said_something(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> bool:
    """Say whether the server has sent or closed something while nothing was asked."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
    return bool(poll.poll(0))


async def _run(plan: Plan, target: Target) -> None:
    conninfo = psycopg.conninfo.make_conninfo(
        host=target.host,
        port=target.port,
        user=target.user,
        password=target.password,
        dbname=target.database,
        sslmode="require",
    )
    written: list[str] = []
    begin = time.monotonic() + 0.5
    async with asyncio.TaskGroup() as group:
        for number in range(plan.clients):
            phase = plan.period_seconds * number / plan.clients
            group.create_task(_Client(conninfo, written).run(begin + phase, plan.period_seconds))
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            sys.stdout.write("".join(written))
            sys.stdout.flush()
            written.clear()


def main() -> None:
    """Run the plan until standard input is closed."""
    given = json.loads(sys.stdin.readline())

    def end_with_input() -> None:
        sys.stdin.read()
        # Not through the loop: it may wait for a server that says nothing.
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    asyncio.run(_run(Plan(**given["plan"]), Target(**given["target"])))


if __name__ == "__main__":
    main()
