"""`/fleet` and `python -m emberpool_proxy fleet`: every task of a fleet, its part of the budget, and what is wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from emberpool_local.host.ports import free_port
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.agent.fleet import Fleet
from emberpool_proxy.health import Health, serve_health
from emberpool_proxy.pgbouncer.rows import PoolRow
from emberpool_proxy.telemetry import fleet_look
from emberpool_proxy.telemetry.composed import Telemetry
from emberpool_proxy.telemetry.fleet_look import FleetLook, TaskAnswer, look_at_fleet
from emberpool_proxy.telemetry.fleet_view import COLUMNS, PLAIN_BLOCKS, document, picture, sums, text_of
from emberpool_proxy.telemetry.readings import Reading
from emberpool_proxy.telemetry.status_view import StatusUnavailable

from .conftest import Proxy, wait_until
from .observed import some_settings

SHARING = BudgetStatus(
    state="sharing",
    budget=30,
    floor=3,
    limit=7,
    slots_held=4,
    servers=6,
    busy=5,
    waiting=2,
    missing=1,
    longest_wait_seconds=0.25,
    is_connected=True,
    slots_promised=20,
    slots=20,
    slots_free=10,
    tasks=3,
    pool_connections=18,
)


def health_with(budget: BudgetStatus | None) -> Health:
    health = Health(is_answering=True, budget=budget)
    health.take([Reading(0, (PoolRow("shop", "role", cl_active=40, cl_waiting=2, sv_active=5),), (), ())])
    return health


class Tasks:
    """Tasks on addresses of their own that answer as the agent does, on one health port."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.port = free_port()

    def url(self, number: int) -> str:
        return f"http://127.0.0.{number}:{self.port}"

    async def start(self, number: int, knows: tuple[int, ...] = (), budget: BudgetStatus | None = SHARING) -> str:
        """Start the task 127.0.0.<number>, which knows of the others; return its url."""
        settings, health = some_settings(), health_with(budget)
        status = Telemetry(settings, health).status
        own, *others = ({"host": f"127.0.0.{n}", "health_port": self.port} for n in (number, *knows))
        status.add("fleet", lambda: {"address": own, "members": others})
        listening = self._stack.enter_context(socket.create_server((f"127.0.0.{number}", self.port)))
        await self._stack.enter_async_context(serve_health(listening, health, describe=status.document))
        return self.url(number)

    async def start_other(self, number: int, handler: Callable[[web.Request], Any]) -> None:
        """Start a program at 127.0.0.<number> that is no proxy."""
        app = web.Application()
        app.router.add_get("/fleet", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, f"127.0.0.{number}", self.port).start()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with AsyncExitStack() as stack:
        yield Tasks(stack)


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emberpool_proxy", "fleet", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(*arguments: str) -> tuple[int, str, str]:
    async with command(*arguments) as process:
        output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


# --- who is asked


async def test_every_task_is_found_from_one(tasks: Tasks) -> None:
    """The one that is named leads to those that it knows, and those to one that has just joined and only they know."""
    url = await tasks.start(2, knows=(3, 10))
    await tasks.start(3, knows=(2, 4))
    await tasks.start(4, knows=(3,))
    await tasks.start(10, knows=(2,))
    seen = await look_at_fleet(url)
    assert [answer.name for answer in seen.answers] == [tasks.url(number) for number in (2, 3, 4, 10)]
    assert all(answer.document for answer in seen.answers)


async def test_task_is_one_row_whatever_it_was_called(tasks: Tasks) -> None:
    """A task that is asked by another name than the one that it has for the others is not shown twice."""
    await tasks.start(1, knows=(2,))
    await tasks.start(2, knows=(1,))
    seen = await look_at_fleet(f"http://localhost:{tasks.port}/")
    assert [answer.name for answer in seen.answers] == [tasks.url(1), tasks.url(2)]


async def test_tasks_that_do_not_answer_are_rows_that_say_why(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there, silence, an error, nonsense, another version and an endless answer cost one short wait for all."""
    monkeypatch.setattr(fleet_look, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(fleet_look, "LONGEST_DOCUMENT_BYTES", 100_000)

    async def silence(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def error(_: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable

    async def nonsense(_: web.Request) -> web.Response:
        return web.json_response([1, 2])

    async def other_version(_: web.Request) -> web.Response:
        return web.json_response({"budget": {"state": "sharing"}, "clients": {}, "draining": False})

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    for number, handler in enumerate((silence, error, nonsense, other_version, endless), 4):
        await tasks.start_other(number, handler)
    url = await tasks.start(2, knows=tuple(range(3, 9)))
    async with asyncio.timeout(10):
        seen = await look_at_fleet(url)
    problems = {answer.name: answer.problem for answer in seen.answers}
    assert problems.pop(url) == ""
    words = ("refused", "within 1 s", "503", "no proxy", "another version", "no proxy")
    for number, word in enumerate(words, 3):
        assert word in problems.pop(tasks.url(number)), word
    assert not problems
    shown = picture(seen)
    assert [row[1] for row in shown.rows] == ["sharing", *["no answer"] * 6]
    assert len([warning for warning in shown.warnings if warning.startswith("127.0.0.")]) == 6


async def test_fleet_is_seen_when_the_task_that_was_asked_is_gone(tasks: Tasks) -> None:
    """Those of an earlier look are asked instead; the one that is gone is a row as long as the others count on it."""
    await tasks.start(3, knows=(2,))
    gone = tasks.url(2)
    seen = await look_at_fleet(gone, others=[tasks.url(3)])
    assert [(answer.name, answer.document is None) for answer in seen.answers] == [(gone, True), (tasks.url(3), False)]


async def test_nobody_there_is_an_error() -> None:
    """When no task answers there is no picture of the fleet, but an error that names the address."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StatusUnavailable, match=f"no proxy answers at {url}"):
        await look_at_fleet(url, others=[f"http://127.0.0.1:{free_port()}"])


async def test_agent_tells_where_it_and_the_others_answer() -> None:
    """What /fleet says of a fleet's members is what the agents told each other; one that is alone has no members."""
    alone = Fleet(some_settings())
    await alone.choose_identity()
    assert alone.describe() == {"address": None, "members": []}
    port = free_port()
    settings = some_settings(health_port=port, listen_host="127.0.0.2", fleet_members=f"127.0.0.3:{port}")
    member = Fleet(settings)
    await member.choose_identity()
    assert member.describe() == {"address": {"host": "127.0.0.2", "health_port": port}, "members": []}


# --- how it is worded


def answer_of(host: str, budget: BudgetStatus, draining: bool = False) -> TaskAnswer:
    said = {"clients": {"connected": 42, "waiting": 2}, "draining": draining, "budget": budget.document()}
    return TaskAnswer(f"http://{host}:8080", said)


def look_of(*answers: TaskAnswer) -> FleetLook:
    return FleetLook(datetime(2026, 1, 1, tzinfo=UTC), answers)


ASLEEP = BudgetStatus(state="asleep", budget=30, floor=3, limit=3, slots_promised=20)
SILENT = TaskAnswer("http://10.0.0.9:8080", problem="refused")


def test_rows_and_sums_are_what_the_tasks_said() -> None:
    """A row has the task's own numbers under the columns' names; the last one adds them up against the budget."""
    shown = picture(look_of(answer_of("10.0.0.1", SHARING), answer_of("10.0.0.2", replace(SHARING, servers=7), True)))
    row = dict(zip(COLUMNS, shown.rows[0], strict=True))
    assert row == {
        "task": "10.0.0.1",
        "state": "sharing",
        "slots": "4",
        "servers": "6/7",
        "busy": "5",
        "clients": "42",
        "waiting": "2",
        "missing": "1",
        "wait": "0.2 s",
    }
    assert shown.rows[1][1] == "draining"
    assert shown.sums == ("sum", "2 tasks", "8/20", "13/14", "10", "84", "4", "2", "0.2 s")
    assert "budget 30: 13 server connections in use, 14 granted (floors 6 + slots 8), 12 slots free" in shown.budget


def test_slots_of_a_silent_task_do_not_count_as_free() -> None:
    """Who does not answer may hold slots: what the database told the others is free, is."""
    total = sums(look_of(answer_of("10.0.0.1", SHARING), SILENT))
    assert (total["silent"], total["slots_free"]) == (1, 10)


def test_sleeping_fleet_knows_no_slots() -> None:
    """Tasks without a control connection have been told nothing, and that is what is shown."""
    shown = picture(look_of(answer_of("10.0.0.1", ASLEEP)))
    assert shown.rows[0][1:4] == ("asleep", "0", "0/3")
    assert "free" not in shown.budget
    assert not shown.warnings


def test_tasks_that_share_nothing_add_up() -> None:
    """Without a shared budget the sum of the tasks' own limits is what they may have."""
    alone = BudgetStatus(state="alone", budget=20, floor=20, limit=20, servers=5)
    shown = picture(look_of(answer_of("10.0.0.1", alone), answer_of("10.0.0.2", alone)))
    assert shown.budget == "no shared budget: 10 of at most 40 server connections"
    assert shown.sums[2] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "lost", "slots_held": 0}, "10.0.0.1 has no control connection"),
        ({"short_by": 7}, "room for 7 connections fewer than promised"),
        ({"claim_conflict": 12}, "promises 12 slots and this one 20"),
        ({"excess": 2}, "2 server connections more than the tasks may have"),
        ({"pool_connections": 31}, "31 server connections are more than the budget of 30"),
        ({"tasks": 5}, "3 more with a control connection"),
    ],
)
def test_what_is_wrong_is_said_once(change: dict[str, Any], words: str) -> None:
    """Each fault is one line below the table, also when several tasks see it."""
    faulty = replace(SHARING, **{"tasks": 2, **change})
    second = replace(faulty, state="sharing")
    warnings = picture(look_of(answer_of("10.0.0.1", faulty), answer_of("10.0.0.2", second))).warnings
    assert [words in warning for warning in warnings] == [True], warnings


def test_healthy_fleet_has_no_warning() -> None:
    """Three tasks that share as they should: nothing is below the sums."""
    assert not picture(look_of(*(answer_of(f"10.0.0.{n}", SHARING) for n in (1, 2, 3)))).warnings


def test_shares_are_bars_where_there_is_room() -> None:
    """A bar is as long as the task's part of the budget, full as far as it is used, and never makes a line too long."""
    small = replace(SHARING, slots_held=0, servers=1)
    shown = picture(
        look_of(answer_of("10.0.0.1", replace(SHARING, slots_held=27)), answer_of("10.0.0.2", small), SILENT)
    )
    wide = text_of(shown, 200, PLAIN_BLOCKS).splitlines()
    assert wide[1].split()[-1] == "######" + "-" * 26
    assert wide[2].split()[-1] == "#--"
    for width in (80, 100, None):
        table = text_of(shown, width).splitlines()[:4]
        assert max(map(len, table)) <= 80 if width != 100 else 100
        assert ("share" in table[0]) == (width == 100)


def test_tasks_on_one_machine_are_told_apart_by_their_ports() -> None:
    """Hosts are enough unless several tasks have the same one."""
    answers = [TaskAnswer(f"http://127.0.0.1:{port}", answer_of("", SHARING).document) for port in (8080, 8081)]
    assert [row[0] for row in picture(look_of(*answers)).rows] == ["127.0.0.1:8080", "127.0.0.1:8081"]


def test_json_has_what_each_task_said() -> None:
    """The sums, each task's own document, and the problem of one that does not answer."""
    shown = document(look_of(answer_of("10.0.0.1", SHARING), SILENT))
    assert shown["sum"]["servers"] == 6
    first, second = shown["tasks"]
    assert (first["url"], first["problem"], first["budget"]["slots_held"]) == ("http://10.0.0.1:8080", None, 4)
    assert second == {"url": SILENT.url, "problem": "refused"}
    assert json.loads(json.dumps(shown)) == shown


# --- the command


async def test_command_prints_the_table(tasks: Tasks) -> None:
    """A row for each task in the order of their addresses, the sums last, and nothing on standard error."""
    url = await tasks.start(2, knows=(3,))
    await tasks.start(3, knows=(2,), budget=replace(SHARING, tasks=2))
    code, output, errors = await run("--url", url)
    assert (code, errors) == (0, "")
    header, first, second, total, empty, budget, *warnings = output.splitlines()
    assert tuple(header.split()) == COLUMNS
    assert (first.split()[0], second.split()[0]) == ("127.0.0.2", "127.0.0.3")
    assert total.startswith("sum")
    assert (empty, budget.split()[0]) == ("", "budget")
    assert len(warnings) == 1  # one of the two counts three


async def test_watch_prints_one_document_a_look(tasks: Tasks) -> None:
    """With --json and --watch each look is one line, until Ctrl-C."""
    url = await tasks.start(2)
    async with command("--url", url, "--json", "--watch", "0.05") as process:
        for _ in range(3):
            assert json.loads(await process.stdout.readline())["sum"]["tasks"] == 1


async def test_nothing_there_is_one_clear_error() -> None:
    """Where nobody listens, and for an address that is none, the command says so in one line and exits with 1."""
    url = f"http://127.0.0.1:{free_port()}"
    for address, words in ((url, f"error: no proxy answers at {url}: "), ("ftp://x", "error: the proxy's address")):
        code, output, errors = await run("--url", address)
        assert (code, output) == (1, "")
        assert errors.startswith(words)
        assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
async def test_wrong_interval_is_refused(seconds: str) -> None:
    """A pause that is no sensible time is refused before anybody is asked."""
    code, _, errors = await run("--watch", seconds)
    assert code == 2
    assert "--watch" in errors


# --- real tasks


def test_real_tasks_show_each_other(make_proxy: Callable[..., Proxy]) -> None:
    """Two proxies that share a budget are two rows, and one that ends is a row that says so."""
    ports = {"client_port": free_port(), "health_port": free_port()}
    shared = {"max_server_connections": 20, "most_tasks_alive": 3, "fleet_check_seconds": 0.2}
    hosts = ("127.0.0.2", "127.0.0.3")
    members = ",".join(f"{host}:{ports['health_port']}" for host in hosts)
    proxies = [make_proxy(listen_host=host, fleet_members=members, **ports, **shared).start() for host in hosts]
    url = f"http://127.0.0.2:{ports['health_port']}"

    def rows() -> list[tuple[str, str]]:
        try:
            shown = picture(fleet_look.look(url))
        except StatusUnavailable:
            for proxy in proxies:
                assert proxy.exit_code() is None, proxy.printed()
            return []
        return [(row[0], row[1]) for row in shown.rows]

    wait_until("the tasks did not find each other", lambda: [host for host, _ in rows()] == list(hosts))
    assert "alone" not in {state for _, state in rows()}
    proxies[1].terminate()
    wait_until("the end of a task was not shown", lambda: ("127.0.0.3", "no answer") in rows())
