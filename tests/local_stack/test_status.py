"""`emberpool status`: finds the running local stack's proxy, or asks the one that is named."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.host.ports import free_port
from emberpool_local.running_stack import announced, find_running
from emberpool_local.status import show_status
from emberpool_proxy.health import Health
from emberpool_proxy.pgbouncer.rows import PoolRow, StatsRow
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.readings import Reading
from emberpool_proxy.telemetry.status import Status


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, so that no `emberpool up` of this machine is found."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    return tmp_path


def document() -> dict[str, Any]:
    """What a proxy with two clients answers, made by the proxy's own code."""
    settings = ProxySettings(
        database_host="db.internal",
        database_name="shop",
        database_user="shop_role",
        database_password="hush",
        client_user="function",
        client_password="hush-too",
    )
    health = Health(is_answering=True, database="up")
    pool = PoolRow("shop", "shop_role", cl_active=2, sv_active=1)
    health.take([Reading(0, (pool,), (StatsRow("shop", total_xact_count=5),), ())])
    return Status(settings, health).document()


@pytest.fixture
def url() -> Iterator[str]:
    """Where a server answers as a proxy does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(document()).encode()
            self.send_response(200 if self.path == "/status" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def emberpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emberpool_local", "status", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


def test_status_of_a_named_proxy_is_a_table(url: str) -> None:
    """The table names the proxy, its database and limits, and has a row for the pool."""
    shown = emberpool("--url", url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "shop on db.internal:5432: up" in shown.stdout
    assert "2 of at most 8000" in shown.stdout
    (row,) = [line for line in shown.stdout.splitlines() if "shop_role" in line]
    assert row.split()[:6] == ["0", "shop", "shop_role", "1", "1", "0"]


def test_table_fits_a_terminal(url: str) -> None:
    """On a terminal of 80 columns every number is whole; at most names are shortened."""
    stream = io.StringIO()
    show_status(Console(file=stream, force_terminal=True, width=80, color_system=None), url)
    (row,) = [line for line in stream.getvalue().splitlines() if line.startswith(("0 ", " 0 "))]
    assert row.split()[-9:] == ["1", "0", "1", "0", "0", "0.0", "s", "0", "0.0"]


def test_status_of_the_running_local_stack_needs_no_address(url: str) -> None:
    """Without --url the proxy of the running `emberpool up` is shown; --json prints the document as it is."""
    with announced({}, status_url=url):
        found = find_running()
        assert found is not None
        assert found.status_url == url
        shown = emberpool("--json")
    assert json.loads(shown.stdout)["database"]["host"] == "db.internal"


def test_nothing_running_is_one_clear_error() -> None:
    """Without a local stack and without --url the command says what to do, without a stack trace."""
    shown = emberpool()
    assert shown.returncode == 1
    assert "no local stack is running" in shown.stderr
    assert "emberpool up" in shown.stderr
    assert "--url" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_proxy_that_does_not_answer_is_one_clear_error() -> None:
    """Where nothing listens the address that was tried is named."""
    address = f"http://127.0.0.1:{free_port()}"
    shown = emberpool("--url", address)
    assert shown.returncode == 1
    assert f"no proxy answers at {address}" in shown.stderr
    assert "Traceback" not in shown.stderr
