"""`emberpool up --tasks` and `emberpool fleet`: several proxies on one machine that share one budget."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from emberpool_local.fleet import show_fleet
from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.host.ports import free_port
from emberpool_local.host.waiting import wait_until
from emberpool_local.running_stack import announced
from emberpool_local.stack import LocalStack
from emberpool_proxy.telemetry.fleet_look import look
from emberpool_proxy.telemetry.fleet_view import COLUMNS, document
from emberpool_proxy.telemetry.status_view import StatusUnavailable

TASKS, BUDGET = 2, 17
HOSTS = ["127.0.0.1", "127.0.0.2"]


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    """Two tasks that know each other."""
    with LocalStack(
        max_connections=30,
        max_server_connections=BUDGET,
        tasks=TASKS,
        proxy_settings={"fleet_check_seconds": "0.2"},
    ) as opened:
        wait_until("the tasks did not find each other", lambda: len(tasks(opened)) == TASKS, 20)
        yield opened


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, so that no `emberpool up` of this machine is found."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def tasks(stack: LocalStack) -> list[dict[str, Any]]:
    try:
        return document(look(stack.proxy.status_url))["tasks"]
    except StatusUnavailable:
        return []


def emberpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emberpool_local", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_tasks_share_one_budget(stack: LocalStack) -> None:
    """Each task has its floor of the one budget, whose rest is slots for all; none has the whole."""
    for task in tasks(stack):
        assert task["problem"] is None
        budget = task["budget"]
        assert (budget["budget"], budget["floor"], budget["slots_promised"]) == (BUDGET, 2, BUDGET - TASKS * (2 + 2))
        assert budget["state"] != "alone"


def test_one_connection_string_leads_to_every_task(stack: LocalStack) -> None:
    """Clients with the printed string are spread over all tasks, and each task's certificate is verified."""
    met: set[str] = set()

    def meet() -> bool:
        with psycopg.connect(stack.proxy_conninfo) as connection:
            assert connection.execute("select current_user").fetchone() == ("app",)
            met.add(connection.info.host)
        return met == set(HOSTS)

    wait_until("the clients did not meet every task", meet, 20)
    assert "sslmode=verify-full" in stack.proxy_conninfo


def test_printed_description_has_what_a_handler_and_a_client_need(stack: LocalStack) -> None:
    """The string for clients names all tasks; a handler's variables name one, as the layer takes one host, and why."""
    described = stack.describe()
    assert f"host={','.join(HOSTS)}" in described
    assert "2 tasks" in described
    assert "one host name" in described
    assert stack.handler_environment()["EMBERPOOL_HOST"] == HOSTS[0]


def test_fleet_of_the_running_local_stack_needs_no_address(stack: LocalStack) -> None:
    """Without --url the tasks of the running `emberpool up` are shown, one row each, as text and as JSON."""
    with announced({}, status_url=stack.proxy.status_url):
        shown = emberpool("fleet")
        as_json = emberpool("fleet", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    header, *rows = shown.stdout.splitlines()
    assert tuple(header.split()) == COLUMNS
    assert [row.split()[0] for row in rows[: TASKS + 1]] == [*HOSTS, "sum"]
    assert json.loads(as_json.stdout)["sum"]["tasks"] == TASKS


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_a_terminal(stack: LocalStack, width: int) -> None:
    """Every number is whole on 80 columns; a wider terminal shows the shares, too."""
    stream = io.StringIO()
    show_fleet(Console(file=stream, force_terminal=True, width=width, color_system=None), stack.proxy.status_url)
    header, *rows = stream.getvalue().splitlines()
    assert tuple(header.split())[: len(COLUMNS)] == COLUMNS
    assert ("share" in header) == (width == 120)
    assert [row.split()[0] for row in rows[: TASKS + 1]] == [*HOSTS, "sum"]
    assert all(row.split()[len(COLUMNS)] == "s" for row in rows[:TASKS])  # the end of the last number, "0.0 s"


def test_task_that_was_killed_is_a_row_and_the_others_serve(stack: LocalStack) -> None:
    """A task that is gone is shown as such, and a client with the printed string gets another one."""
    stack.proxies[-1].child.kill()
    wait_until(
        "the end of a task was not shown",
        lambda: [t["problem"] is None for t in tasks(stack)] == [True, False],
        20,
    )
    shown = emberpool("fleet", "--url", stack.proxy.status_url)
    assert shown.returncode == 0
    assert f"{HOSTS[-1]}  no answer" in shown.stdout
    assert f"! {HOSTS[-1]}: Connection refused" in shown.stdout
    for _ in range(10):
        with psycopg.connect(stack.proxy_conninfo) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_nothing_running_is_one_clear_error() -> None:
    """Without a local stack, and where nobody listens, the command says what to do, without a stack trace."""
    address = f"http://127.0.0.1:{free_port()}"
    for arguments, words in (((), "no local stack is running"), (("--url", address), f"no proxy answers at {address}")):
        shown = emberpool("fleet", *arguments)
        assert shown.returncode == 1
        assert words in shown.stderr
        assert "--url" in shown.stderr
        assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "6"), "give --max-server-connections of at least 25"),
        (("--tasks", "0"), "give --tasks from 1 to"),
    ],
)
def test_tasks_that_do_not_fit_are_refused_before_anything_starts(arguments: tuple[str, ...], words: str) -> None:
    """Floors above the budget are refused with the number that would do."""
    shown = emberpool("up", *arguments)
    assert shown.returncode == 1
    assert words in shown.stderr
