"""The layer where one environment runs several invocations at a time (Lambda Managed Instances), on real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from emberpool import settings as names
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.postgres.server import EmbeddedPostgres

from ..local_lambda import NewFleet, answer, wait_until
from .conftest import DATABASE, PASSWORD, ROLE

WORKERS = 3
# Up to 3.11 the runtime client waits for events in native code, where Python handles no signal; what it does on later
# versions is a matter of this variable only.
CLIENT_OF_LATER_PYTHONS = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.13"}

# Each invocation holds its transaction until `together` of them hold one at the same moment.
SOURCE = """
    import os, pathlib, time
    from emberpool import connection as emberpool_connection, warm_connection

    closed = emberpool_connection.WarmConnection.discard
    def discard(self):
        os.write(1, f"discards {os.getpid()} {self.is_open}\\n".encode())
        closed(self)
    emberpool_connection.WarmConnection.discard = discard

    @warm_connection
    def handler(event, context, connection):
        row = connection.execute("select pg_backend_pid(), current_setting('application_name')").fetchone()
        folder = pathlib.Path(f"round {event['round']}")
        folder.mkdir(exist_ok=True)
        (folder / context.aws_request_id).touch()
        until = time.monotonic() + 20
        while len(list(folder.iterdir())) < event["together"]:
            assert time.monotonic() < until, "the others did not come"
            time.sleep(0.005)
        return {"pid": os.getpid(), "backend": row[0], "application_name": row[1]}
"""


@pytest.fixture
def fleet(new_fleet: NewFleet, database: EmbeddedPostgres) -> Fleet:
    environment = {
        names.HOST: database.host,
        names.PORT: str(database.port),
        names.DATABASE: DATABASE,
        names.USER: ROLE,
        names.PASSWORD: PASSWORD,
        names.SSLMODE: "disable",
        **CLIENT_OF_LATER_PYTHONS,
    }
    return new_fleet(
        SOURCE, environment=environment, max_concurrency=WORKERS, max_environments=1, function_name="orders"
    )


async def together(fleet: Fleet, round_number: int) -> list[dict[str, Any]]:
    event = json.dumps({"round": round_number, "together": WORKERS}).encode()
    return [answer(outcome) for outcome in await asyncio.gather(*(fleet.invoke(event) for _ in range(WORKERS)))]


def backends(admin: psycopg.Connection[Any]) -> set[int]:
    rows = admin.execute("select pid from pg_stat_activity where application_name like 'orders/%'")
    return {row[0] for row in rows}


async def test_each_worker_has_one_warm_connection(fleet: Fleet, admin: psycopg.Connection[Any]) -> None:
    """Concurrent invocations never share a connection; each process keeps its own, named after the environment."""
    async with fleet:
        rounds = [await together(fleet, number) for number in (1, 2, 3)]
        assert len(backends(admin)) == WORKERS
    backend_of = {seen["pid"]: seen["backend"] for seen in rounds[0]}
    assert len(backend_of) == len(set(backend_of.values())) == WORKERS
    for seen in (*rounds[1], *rounds[2]):
        assert backend_of[seen["pid"]] == seen["backend"]
    assert {seen["application_name"] for each in rounds for seen in each} == {"orders/T]000001"}


async def test_each_worker_connects_ahead_of_its_first_invocation(fleet: Fleet, admin: psycopg.Connection[Any]) -> None:
    """Every process opens its connection while it loads the handler, and its first invocation uses that one."""
    async with fleet:
        await fleet.scale_out(1)
        await wait_until("not every worker connected", lambda: len(backends(admin)) == WORKERS)
        ahead = backends(admin)
        assert {seen["backend"] for seen in await together(fleet, 4)} == ahead


async def test_lost_connection_is_replaced_by_the_worker_that_lost_it(
    fleet: Fleet, admin: psycopg.Connection[Any]
) -> None:
    """A terminated backend costs its own process a new connection, and the others nothing."""
    async with fleet:
        before = {seen["pid"]: seen["backend"] for seen in await together(fleet, 5)}
        lost, *kept = before
        admin.execute("select pg_terminate_backend(%s, 5000)", [before[lost]])
        after = {seen["pid"]: seen["backend"] for seen in await together(fleet, 6)}
    assert after[lost] not in before.values()
    assert [after[pid] for pid in kept] == [before[pid] for pid in kept]


async def test_shutdown_closes_the_connection_of_every_worker(fleet: Fleet, admin: psycopg.Connection[Any]) -> None:
    """One registered extension brings SIGTERM to all workers: each closes what it has open, and the client ends."""
    async with fleet:
        pids = {seen["pid"] for seen in await together(fleet, 7)}
        (environment,) = fleet.environments
    assert {f"discards {pid} True" for pid in pids} == {
        line for line in environment.log_lines if line.startswith("discards")
    }
    assert environment._process is not None
    assert environment._process.exited.result() == 0
    await wait_until("a backend stayed", lambda: not backends(admin))
