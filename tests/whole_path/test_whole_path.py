"""Handler -> layer -> PgBouncer -> PostgreSQL with the real runtime client, faults included."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from emberpool import settings as names
from emberpool_local.errors import HandlerInvalid
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.lambda_runtime import environment as lambda_environment
from emberpool_local.stack import LocalStack

FOLDER = Path(__file__).parent
MAX_SERVER_CONNECTIONS = 4
DIRECT = "direct-path"  # the name of functions that go straight to the database


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(max_connections=20, max_server_connections=MAX_SERVER_CONNECTIONS) as stack:
        with psycopg.connect(stack.direct_conninfo) as connection:
            connection.execute("create table ledger (id text primary key)")
        yield stack


@pytest.fixture
def admin(stack: LocalStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.superuser_conninfo, autocommit=True) as connection:
        connection.execute("truncate ledger")
        yield connection


def fleet_of(stack: LocalStack, **options: Any) -> Fleet:
    return Fleet(
        **{
            "handler": "function:handler",
            "code_folder": FOLDER,
            "environment": stack.handler_environment(),
            "function_name": "whole-path",
            **options,
        }
    )


def fleet_with_margin(stack: LocalStack) -> Fleet:
    """Return a fleet that ends its statements early enough for a machine that stalls meanwhile."""
    return fleet_of(
        stack, timeout_seconds=3, environment=stack.handler_environment() | {names.DEADLINE_MARGIN_MS: "1500"}
    )


async def invoke(fleet: Fleet, **event: Any) -> Outcome:
    return await fleet.invoke(json.dumps(event).encode())


def answer(outcome: Outcome) -> Any:
    assert outcome.status == "succeeded", f"{outcome.error_type}: {outcome.error_message}\n{outcome.log}"
    return json.loads(outcome.payload)


def ledger(admin: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def waits_in_vain(stack: LocalStack) -> int:
    return stack.proxy.log_path.read_text().count("pooler error: query_wait_timeout")


async def become(sentence: str, fact: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, f"{sentence} within {seconds} s"
        await asyncio.sleep(0.02)


async def test_invocation_commits_through_the_proxy(stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
    """An event is committed by a handler that came in over verified TLS, as the pool's database role."""
    async with fleet_of(stack) as fleet:
        seen = answer(await invoke(fleet, id="a"))
    assert ledger(admin) == ["a"]
    assert (seen["user"], seen["tls"]) == ("app", True)


async def test_handler_that_raises_rolls_back_and_the_environment_lives_on(
    stack: LocalStack, admin: psycopg.Connection[Any]
) -> None:
    """A handler's exception reaches the caller, its work is rolled back, and the next invocation succeeds."""
    async with fleet_of(stack, max_environments=1) as fleet:
        failed = await invoke(fleet, id="a", **{"raise": "on purpose"})
        assert (failed.status, failed.error_type, failed.error_message) == ("failed", "RuntimeError", "on purpose")
        answer(await invoke(fleet, id="b"))
    assert ledger(admin) == ["b"]


async def test_burst_of_cold_starts_stays_within_the_budget(stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
    """Forty environments at once, three times what the database allows: none fails, and the pool stays in its part."""
    most = 0

    def watch() -> None:
        nonlocal most
        count = admin.execute("select count(*) from pg_stat_activity where usename = 'app'").fetchone()
        most = max(most, count[0])

    async with fleet_of(stack, start_method="fork", timeout_seconds=60) as fleet:
        await fleet.scale_out(40)
        invocations = asyncio.gather(*(invoke(fleet, id=f"{n:03}", sleep=0.01) for n in range(120)))
        while not invocations.done():
            watch()
            await asyncio.sleep(0.005)
        for outcome in await invocations:
            answer(outcome)
    assert len(ledger(admin)) == 120
    assert 1 <= most <= MAX_SERVER_CONNECTIONS


async def test_frozen_environments_survive_the_loss_of_every_connection(
    stack: LocalStack, admin: psycopg.Connection[Any]
) -> None:
    """All server connections terminated and PgBouncer killed while ten environments are frozen: ten of ten recover."""
    async with fleet_of(stack) as fleet:
        await fleet.scale_out(10)
        before = await asyncio.gather(*(invoke(fleet) for _ in range(10)))
        assert len({answer(outcome)["pid"] for outcome in before}) == 10
        await become("environments did not freeze", lambda: all(e.is_frozen for e in fleet.environments))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
        kill_pgbouncer(stack)
        after = await asyncio.gather(*(invoke(fleet) for _ in range(10)))
    assert {answer(outcome)["pid"] for outcome in after} == {answer(outcome)["pid"] for outcome in before}


def kill_pgbouncer(stack: LocalStack) -> None:
    """SIGKILL the proxy's PgBouncer and wait until its agent has started another."""
    old = pgbouncer_pids(stack)
    os.kill(old[-1], signal.SIGKILL)
    until = time.monotonic() + 10
    while len(pgbouncer_pids(stack)) == len(old):
        assert time.monotonic() < until, "the agent did not start another PgBouncer"
        time.sleep(0.02)


def pgbouncer_pids(stack: LocalStack) -> list[int]:
    lines = [json.loads(line) for line in stack.proxy.log_path.read_text().splitlines() if line.endswith("}")]
    return [line["pid"] for line in lines if line["message"] == "pgbouncer answers"]


async def test_no_statement_outlives_its_environment(stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
    """A statement longer than the function's timeout is cancelled in time, and nothing runs on in the database."""
    async with fleet_with_margin(stack) as fleet:
        outcome = await invoke(fleet, id="a", sleep=60)
    assert outcome.error_type == "QueryCanceled"
    running = admin.execute("select count(*) from pg_stat_activity where usename = 'app' and state = 'active'")
    assert running.fetchone() == (0,)
    assert ledger(admin) == []


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
async def test_busy_pool_is_a_clear_error(is_warm: bool) -> None:
    """When every server connection stays busy for query_wait, the invocation fails with PoolBusy and ran nothing."""
    with (
        LocalStack(max_connections=10, max_server_connections=1, proxy_settings={"query_wait_seconds": "1"}) as stack,
        psycopg.connect(stack.proxy_conninfo) as holder,
    ):
        async with fleet_of(stack) as fleet:
            if is_warm:
                answer(await invoke(fleet))
            holder.execute("select 1")  # in a transaction: it keeps the only server connection
            outcome = await invoke(fleet)
            assert outcome.error_type == "PoolBusy"
            assert "nothing has run" in str(outcome.error_message)
            # A busy pool is not asked again: the invocation waited once.
            await become("the pool has not logged it", lambda: waits_in_vain(stack) > 0)
            assert waits_in_vain(stack) == 1
            holder.commit()
            answer(await invoke(fleet))


async def test_busy_pool_is_a_clear_error_before_lambda_ends_the_invocation() -> None:
    """A function with less time than the proxy's query_wait gets PoolBusy, and its environment lives on."""
    with (
        LocalStack(max_connections=10, max_server_connections=1) as stack,
        psycopg.connect(stack.proxy_conninfo) as holder,
    ):
        async with fleet_with_margin(stack) as fleet:
            answer(await invoke(fleet))
            holder.execute("select 1")  # in a transaction: it keeps the only server connection
            outcome = await invoke(fleet)
            assert (outcome.status, outcome.error_type) == ("failed", "PoolBusy")
            holder.commit()
            assert not (await invoke(fleet)).is_cold


async def test_two_handlers_of_a_module_share_the_connection(stack: LocalStack) -> None:
    """A module may decorate several handlers."""
    async with fleet_of(stack, handler="function:second_handler") as fleet:
        assert answer(await invoke(fleet)) == 2


async def test_missing_variable_fails_at_init_with_its_name(stack: LocalStack) -> None:
    """A function that was deployed without its variables says which one at its init."""
    with pytest.raises(HandlerInvalid) as caught:
        async with fleet_of(stack, environment={}) as fleet:
            await fleet.scale_out(1)
    assert "EMBERPOOL_HOST must be set" in caught.value.problem + caught.value.next_step


def function_backends(admin: psycopg.Connection[Any]) -> list[int]:
    # Not those of the proxy: its server connections carry the names of functions, too.
    rows = admin.execute("select pid from pg_stat_activity where application_name like 'direct-path%'")
    return [row[0] for row in rows]


def abandoned_sessions(admin: psycopg.Connection[Any], database: str) -> int:
    """Count the sessions whose client was gone without a word."""
    query = "select sessions_abandoned from pg_stat_database where datname = %s"
    return admin.execute(query, [database]).fetchone()[0]


@pytest.fixture
def own_database(admin: psycopg.Connection[Any]) -> Iterator[str]:
    """A database in which nobody but the test has sessions."""
    admin.execute("create database goodbye")
    yield "goodbye"
    admin.execute("drop database goodbye with (force)")


async def test_shutdown_closes_the_connection(
    stack: LocalStack, admin: psycopg.Connection[Any], own_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an environment the layer says goodbye to the server instead of leaving it a dead socket."""
    # What it does is asked here, not how much of Lambda's half second it takes: this machine is shared.
    monkeypatch.setattr(lambda_environment, "SHUTDOWN_SECONDS", 10.0)
    environment = {
        **stack.direct_handler_environment(),
        "EMBERPOOL_DATABASE": own_database,
        # The runtime client for 3.11 cannot run a signal handler while it waits; the one for 3.12 and later can.
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
    }
    async with fleet_of(stack, environment=environment, function_name=DIRECT) as fleet:
        answer(await invoke(fleet))
        assert len(function_backends(admin)) == 1
    await become("the connection was not closed", lambda: not function_backends(admin))
    assert abandoned_sessions(admin, own_database) == 0


async def test_snapshot_holds_no_connection_and_a_restored_environment_has_its_own(
    stack: LocalStack, admin: psycopg.Connection[Any]
) -> None:
    """SnapStart: nothing is connected when the snapshot is taken; after the restore an invocation succeeds."""
    async with fleet_of(
        stack, environment=stack.direct_handler_environment(), function_name=DIRECT, snapstart=True
    ) as fleet:
        await fleet.scale_out(1)
        assert function_backends(admin) == []
        await fleet.environments[0].restore()
        answer(await invoke(fleet))
        assert len(function_backends(admin)) == 1


async def test_connection_is_opened_during_init(stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
    """An environment that was initialised but never invoked has its connection, and uses it."""
    async with fleet_of(
        stack, environment=stack.direct_handler_environment(), function_name=DIRECT, freeze_when_idle=False
    ) as fleet:
        await fleet.scale_out(1)
        await become("the connection was not opened during init", lambda: len(function_backends(admin)) == 1)
        opened = function_backends(admin)
        assert answer(await invoke(fleet))["backend_pid"] == opened[0]
