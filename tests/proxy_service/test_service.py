"""The proxy as a process: serves, refuses, restarts PgBouncer, drains; wrong input ends it with one clear line."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres

from ..processes import is_running
from .conftest import (
    CLIENT_PASSWORD,
    DATABASE,
    DATABASE_PASSWORD,
    DATABASE_USER,
    Proxy,
    wait_until,
)

MakeProxy = Callable[..., Proxy]


def refusal(conninfo: str) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(conninfo, connect_timeout=5).close()
    return str(caught.value)


def test_query_reaches_the_database_over_tls_as_its_role(make_proxy: MakeProxy) -> None:
    """A function's user gets a verified TLS connection and acts as the pool's database role."""
    proxy = make_proxy().start_ready()
    with psycopg.connect(proxy.conninfo()) as connection:
        assert connection.pgconn.ssl_in_use
        row = connection.execute("select current_user, current_database()").fetchone()
    assert row == (DATABASE_USER, DATABASE)


def test_many_clients_share_few_server_connections(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """Thirty clients at once are served by at most the configured number of server connections."""
    proxy = make_proxy(max_server_connections=3).start_ready()
    backends: set[int] = set()
    failures: list[Exception] = []

    def client() -> None:
        try:
            with psycopg.connect(proxy.conninfo()) as connection:
                backends.add(connection.execute("select pg_backend_pid() from pg_sleep(0.02)").fetchone()[0])
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert 1 <= len(backends) <= 3


def test_only_the_clients_user_gets_in(make_proxy: MakeProxy) -> None:
    """The database's own role, the agent, the console and plain text are refused at the door."""
    proxy = make_proxy().start_ready()
    assert "SASL authentication failed" in refusal(proxy.conninfo(password="wrong"))
    assert "login rejected" in refusal(proxy.conninfo(user=DATABASE_USER, password="any"))
    assert "login rejected" in refusal(proxy.conninfo(user="emberpool_agent", dbname="pgbouncer"))
    assert "not allowed" in refusal(proxy.conninfo(dbname="pgbouncer"))
    assert "no authentication method" in refusal(proxy.conninfo(dbname="postgres"))
    assert "SSL required" in refusal(proxy.conninfo(sslmode="disable"))


def test_rendered_files_are_private(make_proxy: MakeProxy) -> None:
    """The run folder is 0700 and each secret file 0600; the client's password is stored as a verifier only."""
    proxy = make_proxy().start_ready()
    run = Path(proxy.setting("run_folder"), "0")
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    for name in ("pgbouncer.ini", "users.txt", "hba.conf", "databases.ini", "client.key", "../agent.json"):
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o600, name
    assert CLIENT_PASSWORD not in (run / "users.txt").read_text()
    assert DATABASE_PASSWORD not in (run / "pgbouncer.ini").read_text()


def test_crashed_pgbouncer_is_back_and_counted(make_proxy: MakeProxy) -> None:
    """A killed PgBouncer is started again, clients get in again and the health body counts the restart."""
    proxy = make_proxy().start_ready()
    old = proxy.pgbouncer_pid()
    os.kill(old, signal.SIGKILL)
    wait_until("PgBouncer was not started again", lambda: proxy.pgbouncer_pid() != old)
    with psycopg.connect(proxy.conninfo()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    wait_until("the restart was not counted", lambda: proxy.get("/healthz")[1].get("pgbouncer_restarts") == 1)
    assert proxy.status("/healthz") == 200


def test_pgbouncer_that_keeps_crashing_ends_the_proxy(make_proxy: MakeProxy) -> None:
    """After several crashes in a row the proxy exits non-zero, so that its task is replaced."""
    proxy = make_proxy().start_ready()
    killed: set[int] = set()
    while proxy.exit_code() is None:
        pid = wait_until(
            "neither a new PgBouncer nor an exit",
            lambda: proxy.exit_code() is not None or {proxy.pgbouncer_pid()} - killed,  # noqa: B023 (called at once)
        )
        if pid is not True:
            killed |= pid
            os.kill(pid.pop(), signal.SIGKILL)
    assert proxy.exit_code() == 1
    assert len(killed) == 5
    assert "giving up" in proxy.log_lines()[-1]["message"]


def test_hanging_pgbouncer_is_replaced(make_proxy: MakeProxy) -> None:
    """A PgBouncer that is stopped in its tracks turns the proxy unready, and is ended and started again."""
    proxy = make_proxy().start_ready()
    old = proxy.pgbouncer_pid()
    os.kill(old, signal.SIGSTOP)
    wait_until("a hanging PgBouncer still counts as ready", lambda: proxy.status("/readyz") == 503)
    wait_until("a hanging PgBouncer was not replaced", lambda: proxy.pgbouncer_pid() != old, timeout=30)
    assert not is_running(old)


def test_drain_lets_the_running_transaction_end(make_proxy: MakeProxy) -> None:
    """On SIGTERM a transaction that runs commits, idle clients are closed, and the proxy exits with 0."""
    proxy = make_proxy().start_ready()
    idle = psycopg.connect(proxy.conninfo(), autocommit=True)
    idle.execute("select 1")
    busy = psycopg.connect(proxy.conninfo())
    busy.execute("create table if not exists committed_in_drain (id int)")
    proxy.terminate()
    wait_until("the drain did not begin", lambda: proxy.get("/readyz")[1].get("reason") == "draining")
    busy.execute("insert into committed_in_drain values (1)")
    busy.commit()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 0
    with pytest.raises(psycopg.OperationalError):
        idle.execute("select 1")
    for connection in (idle, busy):
        connection.close()


def test_transaction_that_never_ends_does_not_hold_up_the_stop(make_proxy: MakeProxy) -> None:
    """The whole stop is bounded by stop_seconds, and the log says what was cut."""
    proxy = make_proxy(stop_seconds=1).start_ready()
    busy = psycopg.connect(proxy.conninfo())
    busy.execute("select 1")
    proxy.terminate()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    busy.close()
    assert "transactions were still running" in proxy.printed()


def test_killed_agent_leaves_no_pgbouncer(make_proxy: MakeProxy) -> None:
    """When the agent is killed outright its PgBouncer ends too."""
    proxy = make_proxy().start_ready()
    pid = proxy.pgbouncer_pid()
    proxy.process.kill()
    wait_until("PgBouncer outlived its agent", lambda: not is_running(pid))


def test_low_limit_of_open_files_is_raised_for_pgbouncer(make_proxy: MakeProxy) -> None:
    """Started with the usual soft limit of 1,024 open files, PgBouncer still gets enough for all its clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    proxy = make_proxy(max_client_connections=2000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        proxy.start_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{proxy.pgbouncer_pid()}/limits").read_text()
    assert int(re.search(r"Max open files\s+(\d+)", limits)[1]) >= 2005


def test_database_that_is_down_at_start_is_waited_for(make_proxy: MakeProxy) -> None:
    """Without a database the proxy is ready all the same, and a client gets the reason after query_wait."""
    proxy = make_proxy(database_port=1, query_wait_seconds=1).start_ready()
    with pytest.raises(psycopg.OperationalError, match=r"query_wait_timeout|server login|connect"):
        psycopg.connect(proxy.conninfo(), connect_timeout=10).close()
    assert proxy.status("/healthz") == 200


def listener() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


@pytest.mark.parametrize(
    ("overrides", "exit_code", "message"),
    [
        ({"database_name": "a b"}, 2, "EMBERPOOL_PROXY_DATABASE_NAME must match"),
        ({"max_server_connections": 0}, 2, "must be between 1 and 10000, got 0"),
        ({"client_password": ""}, 2, "EMBERPOOL_PROXY_CLIENT_PASSWORD must be set"),
        ({"pgbouncer_path": "/nowhere/pgbouncer"}, 1, "PgBouncer was not found at '/nowhere/pgbouncer'"),
        ({"run_folder": "/proc/emberpool"}, 1, "cannot prepare the run folder /proc/emberpool"),
        ({"run_folder": "/tmp/" + "long" * 30}, 1, "too long for a unix socket"),
        ({"client_tls_cert_file": "/nowhere", "client_tls_key_file": "/nowhere"}, 1, "cannot read /nowhere"),
    ],
)
def test_wrong_setting_ends_with_one_clear_line(
    make_proxy: MakeProxy, overrides: dict[str, object], exit_code: int, message: str
) -> None:
    """A wrong setting ends the proxy with a defined code and one ERROR line that says what to mend."""
    proxy = make_proxy(**overrides).start()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == exit_code
    errors = [line["message"] for line in proxy.log_lines() if line["level"] == "ERROR"]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in proxy.printed()


@pytest.mark.parametrize("port", ["client_port", "health_port"])
def test_taken_port_is_named(make_proxy: MakeProxy, port: str) -> None:
    """A port that is taken ends the proxy with its number in the message."""
    with listener() as taken:
        number = taken.getsockname()[1]
        proxy = make_proxy(**{port: number}).start()
        wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
        assert proxy.exit_code() == 1
        assert str(number) in proxy.log_lines()[-1]["message"]
        assert "Traceback" not in proxy.printed()


def test_old_pgbouncer_is_refused(make_proxy: MakeProxy, tmp_path: Path) -> None:
    """A PgBouncer that says it is older than 1.24 is refused with both versions."""
    program = tmp_path / "pgbouncer"
    program.write_text("#!/bin/sh\necho PgBouncer 1.18.0\n")
    program.chmod(0o755)
    proxy = make_proxy(pgbouncer_path=program).start()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert "PgBouncer 1.18 at" in proxy.log_lines()[-1]["message"]
    assert "1.24 or newer is needed" in proxy.log_lines()[-1]["message"]


def test_no_secret_is_ever_printed(make_proxy: MakeProxy) -> None:
    """Whatever happened, neither password is in anything that the proxy printed."""
    proxy = make_proxy(log_level="DEBUG").start_ready()
    refusal(proxy.conninfo(password="wrong"))
    with psycopg.connect(proxy.conninfo()) as connection:
        connection.execute("select 1")
    os.kill(proxy.pgbouncer_pid(), signal.SIGKILL)
    proxy.terminate()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    for secret in (CLIENT_PASSWORD, DATABASE_PASSWORD):
        assert secret not in proxy.printed()
