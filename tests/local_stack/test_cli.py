"""The `emberpool` command as its users run it: a process, its output and its exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from emberpool_local.pgbouncer.program import PgbouncerProgram

from ..processes import children_of

EMBERPOOL = str(Path(sys.executable).with_name("emberpool"))
ORDERS = Path(__file__).parents[2] / "examples" / "orders"
BOUND_SECONDS = 60


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, pgbouncer_program: PgbouncerProgram, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own, so that no other `emberpool up` is found."""
    monkeypatch.setenv("EMBERPOOL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EMBERPOOL_PGBOUNCER", str(pgbouncer_program.path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(folder: Path, *arguments: str, stdin: str | None = None) -> Ran:
    ran = subprocess.run(
        [EMBERPOOL, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
        input=stdin,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def assert_clear_error(ran: Ran, problem: str, next_step: str) -> None:
    assert ran.code == 1, ran
    assert ran.err.count("error:") == 1, ran.err
    assert problem in ran.err
    assert next_step in ran.err.partition("next:")[2]


@pytest.fixture
def up(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([EMBERPOOL, "up"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def read_description(up: subprocess.Popen[str]) -> str:
    lines = []
    for line in up.stdout:
        lines.append(line)
        if "Stop: Ctrl-C" in line:
            return "".join(lines)
    raise AssertionError(f"`emberpool up` ended: {up.stderr.read()}")


def descendants(pid: int) -> set[int]:
    found, new = set(), {pid}
    while new:
        found |= new
        children = set()
        for parent in new:
            children |= children_of(parent)
        new = children - found
    return found - {pid}


def wait_for_their_end(processes: set[int]) -> None:
    # PostgreSQL's log collector and PgBouncer's last transactions end a moment after their parents.
    until = time.monotonic() + 30
    while alive := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, f"still running: {alive}"
        time.sleep(0.05)


def test_help_lists_every_command(folder: Path) -> None:
    """`emberpool --help` names each command, and each command has a help text of its own."""
    listed = run(folder, "--help").out
    for command in ("demo", "up", "invoke", "burst", "status", "fleet", "simulate", "deploy-local"):
        assert f"\n  {command}" in listed
        assert run(folder, command, "--help").code == 0


def test_up_serves_invoke_and_leaves_nothing_behind(folder: Path, up: subprocess.Popen[str]) -> None:
    """`up` prints connection strings and variables that work, `invoke` runs a handler against it, Ctrl-C cleans up."""
    description = read_description(up)
    proxied = next(line for line in description.splitlines() if line.startswith("Through the proxy:"))
    with psycopg.connect(proxied.partition(":")[2].strip()) as connection:
        connection.execute((ORDERS / "schema.sql").read_bytes())
    assert "export EMBERPOOL_HOST=127.0.0.1" in description
    ran = run(folder, "invoke", f"{ORDERS}/handler.py:handler", "--event", str(ORDERS / "event.json"))
    assert ran.code == 0, ran.err
    assert "order" in json.dumps(json.loads(ran.out))
    children = descendants(up.pid)
    assert len(children) > 3
    up.send_signal(signal.SIGINT)
    assert up.wait(BOUND_SECONDS) == 0
    wait_for_their_end(children)
    assert list((folder / "cache").glob("up.json*")) == []


def test_killed_up_leaves_no_process(folder: Path, up: subprocess.Popen[str]) -> None:
    """Even SIGKILL of `up` leaves no server behind, and `invoke` then says that nothing runs."""
    read_description(up)
    children = descendants(up.pid)
    up.kill()
    up.wait()
    wait_for_their_end(children)
    assert_clear_error(run(folder, "invoke", f"{ORDERS}/handler.py:handler"), "no local stack", "emberpool up")


def test_invoke_errors_are_one_message_each(folder: Path, up: subprocess.Popen[str]) -> None:
    """Unknown handler, a handler that raises, one that is too slow and a malformed event: one clear error each."""
    (folder / "app.py").write_text(
        "import time\n"
        "def handler(event, context):\n    print('seen', event)\n    return event['n'] + 1\n"
        "def slow(event, context):\n    time.sleep(30)\n"
    )
    read_description(up)
    assert run(folder, "invoke", "app:handler", "--event", "-", stdin='{"n": 1}').out == "2\n"
    assert_clear_error(run(folder, "invoke", "app:handle"), "does not define", "did you mean handler")
    assert_clear_error(run(folder, "invoke", "ap:handler"), "not in", "did you mean app")
    assert_clear_error(run(folder, "invoke", "app.handler"), "not a handler", "app:handler")
    raised = run(folder, "invoke", "app:handler")
    assert_clear_error(raised, "KeyError: 'n'", "--trace")
    assert "seen {}" in raised.err
    traced = subprocess.run(
        [EMBERPOOL, "invoke", "app:handler", "--trace"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert 'app.py", line 4' in traced.stderr
    assert_clear_error(run(folder, "invoke", "app:slow", "--timeout-seconds", "1"), "timed out", "--timeout-seconds")
    assert_clear_error(
        run(folder, "invoke", "app:handler", "--event", "-", stdin="{n: 1}"), "not JSON", "double quotes"
    )
    missing = run(folder, "invoke", "app:handler", "--event", "nowhere.json")
    assert missing.code == 2
    assert "nowhere.json" in missing.err


def test_taken_port_is_one_clear_error(folder: Path) -> None:
    """`up` on a port that is taken names it, starts nothing and exits non-zero."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--postgres-port", "--proxy-port"):
            assert_clear_error(run(folder, "up", option, str(port)), f"port {port}", "another port")


def test_cache_that_cannot_be_written_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a writable cache the command says which folder and which variable to set."""
    monkeypatch.setenv("EMBERPOOL_CACHE_DIR", "/proc/emberpool")
    assert_clear_error(run(folder, "up"), "/proc/emberpool", "EMBERPOOL_CACHE_DIR")


def test_old_pgbouncer_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PgBouncer that is too old is named with its version and the version that is needed."""
    old = folder / "pgbouncer"
    old.write_text("#!/bin/sh\necho PgBouncer 1.18.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("EMBERPOOL_PGBOUNCER", str(old))
    ran = run(folder, "up")
    assert_clear_error(ran, "1.18", "newer PgBouncer")
    assert "1.24" in ran.err


def test_limits_that_do_not_fit_are_refused_before_anything_starts(folder: Path) -> None:
    """A pool that is larger than what the database allows is refused, with the number to change."""
    ran = run(folder, "up", "--max-connections", "10", "--max-server-connections", "20")
    assert_clear_error(ran, "do not fit", "--max-connections")


def test_page_that_cannot_be_written_is_found_out_first(folder: Path) -> None:
    """`demo` checks where its page goes before it works for a minute."""
    began = time.monotonic()
    assert_clear_error(run(folder, "demo", "--output", "nowhere/page.html"), "cannot be written", "--output")
    assert time.monotonic() - began < BOUND_SECONDS / 2


def test_demo_that_shows_nothing_exits_non_zero(folder: Path) -> None:
    """When the naive way does not fail, the demo says so and exits with 1; its JSON still stands on standard output."""
    ran = run(folder, "demo", "--environments", "2", "--invocations", "4", "--json")
    assert_clear_error(ran, "the naive way did not fail", "defaults")
    document = json.loads(ran.out)
    assert document["promises_broken"]
    assert Path(document["page"]).is_file()
    assert [way["name"] for way in document["ways"]] == ["naive", "warm", "emberpool"]


def test_burst_runs_a_handler_of_ones_own(folder: Path) -> None:
    """`burst` fires at the user's own handler through the proxy and counts its failures."""
    (folder / "app.py").write_text(
        "from emberpool import warm_connection\n"
        "@warm_connection\n"
        "def handler(event, context, connection):\n"
        "    return connection.execute('select 1 / %s::int', [event['by']]).fetchone()[0]\n"
    )
    options = ("--environments", "3", "--invocations", "9", "--json")
    (folder / "event.json").write_text('{"by": 1}')
    ran = run(folder, "burst", "app:handler", "--event", "event.json", *options)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["ways"][0]["succeeded"] == 9
    (folder / "event.json").write_text('{"by": 0}')
    ran = run(folder, "burst", "app:handler", "--event", "event.json", *options)
    assert json.loads(ran.out)["ways"][0]["failed"] == 9
