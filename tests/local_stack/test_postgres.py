"""The embedded PostgreSQL, with each PostgreSQL that it may run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from emberpool_local.errors import PortTaken, PostgresUnavailable
from emberpool_local.host.ports import LOOPBACK, free_port
from emberpool_local.host.temp_folder import sweep
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.program import PostgresProgram, find_postgres, wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres

KILLED = """
import sys, time
from emberpool_local.postgres.server import EmbeddedPostgres
server = EmbeddedPostgres()
server.open()
print(server.log_path.parent.parent, server.port, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def wheel() -> PostgresProgram:
    """The wheel's PostgreSQL: installed everywhere, as `emberpool[local]` asks for it."""
    program = wheel_postgres()
    assert program is not None
    return program


@pytest.fixture(scope="module")
def wheel_server(wheel: PostgresProgram) -> Iterator[EmbeddedPostgres]:
    """One server of this module's own: its logins are counted and it is restarted."""
    with EmbeddedPostgres(max_connections=10, program=wheel) as server:
        yield server


def authorized(server: EmbeddedPostgres) -> list[str]:
    """The users of all logins so far, in order."""
    lines = [json.loads(line) for line in server.log_path.read_text().splitlines()]
    return [line["user"] for line in lines if line["message"].startswith("connection authorized")]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def test_preferred_postgres_serves_a_role_and_its_database(postgres: EmbeddedPostgres) -> None:
    """The PostgreSQL that find_postgres() prefers lets a role of ours into its own database."""
    password = "with 'quotes' and \\"
    postgres.create_role_and_database("preferred", password, "preferred_database")
    with psycopg.connect(postgres.conninfo("preferred", password, "preferred_database")) as connection:
        row = connection.execute("select current_user, current_database()").fetchone()
    assert row == ("preferred", "preferred_database")
    assert postgres.program == find_postgres()


def test_wheel_serves_over_tcp_with_passwords(wheel_server: EmbeddedPostgres) -> None:
    """The wheel's server takes a role's password and refuses a wrong one."""
    wheel_server.create_role_and_database("app", "right", "app")
    with psycopg.connect(wheel_server.conninfo("app", "right", "app")) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wheel_server.conninfo("app", "wrong", "app"))


def test_only_the_superuser_gets_the_reserved_connections(wheel_server: EmbeddedPostgres) -> None:
    """max_connections less reserved_connections is what a role gets; then it is refused and the superuser is not."""
    wheel_server.create_role_and_database("greedy", "greedy", "greedy")
    conninfo = wheel_server.conninfo("greedy", "greedy", "greedy")
    allowed = wheel_server.max_connections - wheel_server.reserved_connections
    connections = [psycopg.connect(conninfo) for _ in range(allowed)]
    try:
        with pytest.raises(psycopg.OperationalError, match="remaining connection slots are reserved"):
            psycopg.connect(conninfo)
        with psycopg.connect(wheel_server.conninfo()) as superuser:
            assert superuser.execute("select 1").fetchone() == (1,)
    finally:
        for connection in connections:
            connection.close()


def test_log_has_one_authorized_line_for_each_login(wheel_server: EmbeddedPostgres) -> None:
    """A reader of the log counts the logins of a role; starting and stopping the server adds none."""
    wheel_server.create_role_and_database("counted", "counted", "counted")
    wheel_server.restart()
    for _ in range(3):
        psycopg.connect(wheel_server.conninfo("counted", "counted", "counted")).close()
    wait_until("the log does not have 3 logins", lambda: authorized(wheel_server).count("counted") == 3)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_and_committed_rows(wheel_server: EmbeddedPostgres, mode: str) -> None:
    """A restart ends all connections; what was committed is still there on the same port."""
    port = wheel_server.port
    with psycopg.connect(wheel_server.conninfo(), autocommit=True) as connection:
        connection.execute("drop table if exists kept")
        connection.execute("create table kept as select 42 as answer")
        wheel_server.restart("immediate" if mode == "immediate" else "fast")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert wheel_server.port == port
    with psycopg.connect(wheel_server.conninfo()) as again:
        assert again.execute("select answer from kept").fetchone() == (42,)


def test_port_that_is_taken_is_an_error(wheel: PostgresProgram) -> None:
    """A port that was asked for and is taken raises PortTaken with its number."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1"):
            EmbeddedPostgres(port=port, program=wheel).open()


def test_port_lost_to_another_program_while_starting_is_replaced(
    wheel: PostgresProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free port that somebody takes before PostgreSQL binds it costs one more try, no failure."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        taken = other.getsockname()[1]
        first = iter([taken])
        monkeypatch.setattr("emberpool_local.postgres.server.free_port", lambda: next(first, 0) or free_port())
        with EmbeddedPostgres(program=wheel) as server:
            assert server.port != taken
            assert is_listening(server.port)


def test_close_leaves_neither_process_nor_folder(wheel: PostgresProgram) -> None:
    """After the context the port is free, the process ended and the folder gone."""
    with EmbeddedPostgres(program=wheel) as server:
        folder, port = server.log_path.parent.parent, server.port
        assert is_listening(port)
    assert not is_listening(port)
    assert not folder.exists()


def test_server_that_does_not_start_says_why(wheel: PostgresProgram) -> None:
    """A setting that PostgreSQL refuses ends in PostgresUnavailable with PostgreSQL's own words."""
    with pytest.raises(PostgresUnavailable, match="no_such_setting") as caught:
        EmbeddedPostgres(program=wheel, settings={"no_such_setting": "1"}).open()
    assert "EMBERPOOL_POSTGRES_BIN" in caught.value.next_step


def test_server_ends_when_its_owner_is_killed_and_its_folder_is_swept() -> None:
    """SIGKILL of the owner stops the server; a sweep, which each new server does, removes its folder."""
    owner = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        folder, port = owner.stdout.readline().split()
        assert is_listening(int(port))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        wait_until("the server outlived its owner", lambda: not is_listening(int(port)))

        # The server still writes its last files after it has closed its port: a sweep may need a second look.
        def is_swept() -> bool:
            sweep(Path(folder).parent)
            return not Path(folder).exists()

        wait_until("the folder was not swept", is_swept)
    finally:
        owner.kill()
        owner.stdout.close()
        owner.wait()


def test_superuser_password_is_in_no_command_line_and_in_no_file(wheel_server: EmbeddedPostgres) -> None:
    """Neither the processes of this machine nor the server's folder show the password after the start."""
    password = wheel_server.superuser_password.encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 (names only, and they come and go)
        try:
            assert password not in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    folder = wheel_server.log_path.parent.parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password in path.read_bytes()]
