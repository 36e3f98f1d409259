"""`/status` and `python -m emberpool_proxy status`: the pool of a running proxy, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import psycopg
import pytest

from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.telemetry.status_view import COLUMNS, Look, text_of, view

from .bare_pgbouncer import (
    CLIENT_PASSWORD,
    DATABASE,
    ROLE,
    ROLE_PASSWORD,
    BarePgbouncer,
    add_role,
    bare_pgbouncer,
    served,
)
from .observed import Observed, observed


@pytest.fixture(scope="module")
def bare(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    add_role(postgres)
    with bare_pgbouncer(pgbouncer_program, {DATABASE: served(postgres)}) as running:
        yield running


async def status_command(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emberpool_proxy", "status", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def busy(seen: Observed, bare: BarePgbouncer) -> None:
    """One client in a transaction at the moment of the tick."""
    async with await psycopg.AsyncConnection.connect(bare.conninfo()) as client:
        await client.execute("select 1")
        await seen.tick(bare)


async def test_document_holds_the_pool_and_what_parts_add(bare: BarePgbouncer) -> None:
    """The pool's clients and servers, the limits and each part's own facts are in the document; no password is."""
    async with observed() as seen:
        seen.telemetry.status.add("credentials", lambda: {"database": {"age_seconds": 12}})
        await busy(seen, bare)
        status, text = await seen.get("/status")
    document = json.loads(text)
    assert status == 200
    (pool,) = document["processes"][0]["pools"]
    assert pool == {
        "database": DATABASE,
        "user": ROLE,
        "clients": {"active": 1, "idle": 0, "waiting": 0},
        "servers": {"active": 1, "idle": 0, "login": 0},
        "longest_wait_seconds": 0.0,
    }
    assert document["limits"] == {"max_server_connections": 3, "max_client_connections": 8000}
    assert document["credentials"] == {"database": {"age_seconds": 12}}
    assert document["ready"] is True
    for secret in (CLIENT_PASSWORD, ROLE_PASSWORD):
        assert secret not in text


async def test_command_prints_the_pool_as_a_table(bare: BarePgbouncer) -> None:
    """The command prints the facts, one row for each pool under its columns, and what parts added, in words."""
    async with observed() as seen:
        seen.telemetry.status.add("peers", lambda: [{"host": "10.0.0.7", "ids": [1, 2]}])
        await busy(seen, bare)
        code, output, errors = await status_command("--url", seen.url)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("proxy ")
    assert lines[0].endswith(": ready")
    assert "peers     host 10.0.0.7, ids 1; 2" in lines
    header, row = lines[-2:]
    assert header.split()[:3] == list(COLUMNS[:3])
    assert row.split()[:9] == ["0", DATABASE, ROLE, "1", "0", "0", "1", "0", "0"]
    assert len(header) == len(row)


async def test_command_prints_json_for_programs(bare: BarePgbouncer) -> None:
    """With --json the document is printed as it is."""
    async with observed() as seen:
        await busy(seen, bare)
        code, output, _ = await status_command("--url", seen.url, "--json")
        assert code == 0
        assert json.loads(output) == json.loads((await seen.get("/status"))[1])


async def test_watch_goes_on_until_the_proxy_ends(bare: BarePgbouncer) -> None:
    """With --watch the table is printed again and again; when the proxy has ended, that is one clear error."""
    async with observed() as seen:
        await seen.tick(bare)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "emberpool_proxy", "status", "--url", seen.url, "--watch", "0.05", "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(await process.stdout.readline())["ready"]
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith(f"error: no proxy answers at {seen.url}")


async def test_nothing_there_is_one_clear_error() -> None:
    """Where nothing listens the command says what it tried and what to do, without a stack trace."""
    url = f"http://127.0.0.1:{free_port()}"
    code, output, errors = await status_command("--url", url)
    assert (code, output) == (1, "")
    assert errors.startswith(f"error: no proxy answers at {url}: ")
    assert "--url" in errors
    assert len(errors.splitlines()) == 1


async def test_another_program_there_is_one_clear_error() -> None:
    """A server that is not the proxy is told apart from a proxy."""
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    app = web.Application()
    app.router.add_get("/status", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    try:
        for url in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/elsewhere", "ftp://x"):
            code, _, errors = await status_command("--url", url)
            assert code == 1
            assert len(errors.splitlines()) == 1
    finally:
        await runner.cleanup()


async def test_rate_is_of_the_time_between_two_looks(bare: BarePgbouncer) -> None:
    """Two looks two seconds apart with 10 transactions between them show 5 a second."""
    async with observed() as seen:
        await busy(seen, bare)
        document = seen.telemetry.status.document()
    later = json.loads(json.dumps(document))
    later["processes"][0]["databases"][0]["transactions"] += 10
    shown = view(Look(later, at=3.0), before=Look(document, at=1.0))
    assert shown.rows[0][COLUMNS.index("tx/s")] == "5"


async def test_proxy_that_is_not_ready_says_why() -> None:
    """The reason is in the first line, also when no PgBouncer answers and there is no pool to show."""
    async with observed() as seen:
        seen.health.is_answering, seen.health.is_draining = False, True
        shown = view(Look(seen.telemetry.status.document(), at=0.0))
    assert not shown.is_ready
    assert text_of(shown).splitlines()[0].endswith("not ready: draining; pgbouncer does not answer")
    assert COLUMNS[0] not in text_of(shown).splitlines()[-1]


SHARING = BudgetStatus(
    state="sharing",
    budget=30,
    floor=3,
    limit=7,
    slots_held=4,
    servers=6,
    missing=2,
    is_connected=True,
    slots_promised=20,
    slots=18,
    slots_free=8,
    tasks=2,
    short_by=2,
)


@pytest.mark.parametrize(
    ("budget", "at_most", "words"),
    [
        (SHARING, 7, "7 of 30: floor 3 + 4 slots; 8 of 18 slots free, 2 tasks; could use 2 more"),
        (BudgetStatus("asleep", 30, 3, 3, slots_promised=20), 3, "asleep, nobody works: it holds no slot of 20"),
        (BudgetStatus("lost", 30, 3, 3, slots_promised=20), 3, "no control connection: it serves with its floor of 3"),
    ],
)
async def test_budget_is_one_line_and_one_for_each_fault(budget: BudgetStatus, at_most: int, words: str) -> None:
    """What the task has of the fleet's budget, and what is wrong with it, are facts; the document has all of it."""
    async with observed() as seen:
        seen.health.budget = budget
        document = json.loads((await seen.get("/status"))[1])
    facts = view(Look(document, at=0.0)).facts
    first, *faults = [value for name, value in facts if name == "budget"]
    assert first.startswith(words)
    assert [fault[:37] for fault in faults] == (["the database has room for 2 connectio"] if budget.short_by else [])
    assert ("servers", f"0 of at most {at_most}") in facts
    assert document["budget"] == budget.document()


async def test_task_that_is_alone_has_no_line_for_the_budget() -> None:
    """Where nothing is shared there is nothing to say; nor for a proxy of a version before there was a budget."""
    async with observed() as seen:
        document = seen.telemetry.status.document()
    assert document["budget"]["state"] == "alone"
    facts = view(Look(document, at=0.0)).facts
    assert ("servers", "0 of at most 3") in facts
    assert "budget" not in dict(facts)
    del document["budget"]
    assert view(Look(document, at=0.0)).facts == facts
