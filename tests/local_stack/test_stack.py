"""The local stack: PostgreSQL and the real proxy, joined, and gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from emberpool.settings import LayerSettings
from emberpool_local.errors import PortTaken, ProxyUnavailable
from emberpool_local.host.ports import LOOPBACK, free_port
from emberpool_local.host.temp_folder import sweep
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_local.stack import LocalStack

KILLED = """
import time
from emberpool_local.stack import LocalStack
stack = LocalStack()
stack.open()
print(stack.proxy.run_folder.parent, stack.postgres.log_path.parent.parent)
print(stack.postgres.port, stack.proxy.port, stack.proxy.health_port, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def stack(pgbouncer_program: PgbouncerProgram) -> Iterator[LocalStack]:
    with LocalStack(max_connections=12, max_server_connections=3) as opened:
        yield opened


@pytest.fixture
def access(postgres: EmbeddedPostgres) -> DatabaseAccess:
    """A database that exists as far as the proxy's start is concerned: it connects at the first client only."""
    return DatabaseAccess(postgres.host, postgres.port, "app", "app", "not asked for")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def test_both_ways_end_in_the_same_database(stack: LocalStack) -> None:
    """Through the proxy and straight: the same role in the same database."""
    for conninfo in (stack.proxy_conninfo, stack.direct_conninfo):
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("select current_user, current_database()").fetchone() == ("app", "app")
    with psycopg.connect(stack.superuser_conninfo) as connection:
        assert connection.execute("show max_connections").fetchone() == ("12",)
        assert connection.execute("select current_database()").fetchone() == ("app",)


def test_way_through_the_proxy_is_encrypted_and_verified(stack: LocalStack) -> None:
    """The client's connection is TLS and a certificate that is not the proxy's is refused."""
    with psycopg.connect(stack.proxy_conninfo) as connection:
        assert connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(stack.proxy_conninfo, sslrootcert="/etc/ssl/certs/ca-certificates.crt")


def test_more_clients_than_server_connections_are_served(stack: LocalStack) -> None:
    """Ten clients at once through a proxy that may have three server connections: all get an answer."""
    clients = [psycopg.connect(stack.proxy_conninfo, autocommit=True) for _ in range(10)]
    try:
        assert [client.execute("select 1").fetchone() for client in clients] == [(1,)] * 10
        with psycopg.connect(stack.superuser_conninfo) as observer:
            row = observer.execute("select count(*) from pg_stat_activity where usename = 'app'").fetchone()
        assert row is not None
        assert 1 <= row[0] <= stack.max_server_connections
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("way", ["handler_environment", "direct_handler_environment"])
def test_handlers_environment_is_what_the_layer_reads(stack: LocalStack, way: str) -> None:
    """The layer accepts either environment, and a connection made from it works."""
    settings = LayerSettings.from_environment(getattr(stack, way)())
    with psycopg.connect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password,
        dbname=settings.database,
        sslmode=settings.sslmode,
        sslrootcert=settings.sslrootcert,
    ) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_description_names_both_ways_and_every_variable(stack: LocalStack) -> None:
    """What `emberpool up` prints is enough to connect and to run a handler."""
    text = stack.describe()
    assert stack.proxy_conninfo in text
    assert stack.direct_conninfo in text
    for name, value in stack.handler_environment().items():
        assert f"export {name}={value}" in text


def test_passwords_are_in_no_command_line(stack: LocalStack) -> None:
    """No process of this machine shows one of the stack's passwords in its command line."""
    secrets = [value for name, value in stack.handler_environment().items() if "PASSWORD" in name]
    secrets += [value for name, value in stack.direct_handler_environment().items() if "PASSWORD" in name]
    assert len(secrets) == 2
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 (names only, and they come and go)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert not [secret for secret in secrets if secret in command]


def test_closed_stack_leaves_nothing(pgbouncer_program: PgbouncerProgram) -> None:
    """After close() no port answers and no folder is left; a stack can be opened again."""
    stack = LocalStack()
    for _ in range(2):
        stack.open()
        folders = [stack.proxy.run_folder.parent, stack.postgres.log_path.parent.parent]
        ports = [stack.postgres.port, stack.proxy.port, stack.proxy.health_port]
        assert all(is_listening(port) for port in ports)
        stack.close()
        assert not [port for port in ports if is_listening(port)]
        assert not [folder for folder in folders if folder.exists()]


def test_killed_stack_leaves_no_server(pgbouncer_program: PgbouncerProgram) -> None:
    """SIGKILL of the process that opened the stack ends PostgreSQL, the proxy and its PgBouncer."""
    owner = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        folders = owner.stdout.readline().split()
        ports = [int(port) for port in owner.stdout.readline().split()]
        assert len(folders) == 2
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        wait_until("a server outlived its owner", lambda: not any(map(is_listening, ports)))
    finally:
        owner.kill()
        owner.stdout.close()
        owner.wait()

        # The next stack would sweep; there may be none after the last test.
        def is_swept() -> bool:
            sweep(Path(folders[0]).parent)
            return not any(map(os.path.exists, folders))

        wait_until("a folder was not swept", is_swept)


def test_taken_proxy_port_is_an_error_and_stops_postgres(pgbouncer_program: PgbouncerProgram) -> None:
    """PortTaken names the port, and the PostgreSQL that had started is gone."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        stack = LocalStack(proxy_port=port)
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1"):
            stack.open()
        assert not is_listening(stack.postgres.port)


def test_proxy_that_does_not_start_says_why(access: DatabaseAccess, pgbouncer_program: PgbouncerProgram) -> None:
    """The proxy's own words about a wrong setting are in the error, not only that it failed."""
    proxy = LocalProxy(access, settings={"query_wait_seconds": "-1"}, pgbouncer=pgbouncer_program)
    with pytest.raises(ProxyUnavailable, match="EMBERPOOL_PROXY_QUERY_WAIT_SECONDS must be between"):
        proxy.open()


def test_proxy_settings_of_the_users_shell_do_not_reach_it(
    access: DatabaseAccess, pgbouncer_program: PgbouncerProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the shell that the proxy would refuse does not keep it from starting."""
    monkeypatch.setenv("EMBERPOOL_PROXY_NO_SUCH_SETTING", "1")
    monkeypatch.setenv("EMBERPOOL_PROXY_MAX_SERVER_CONNECTIONS", "not a number")
    with LocalProxy(access, pgbouncer=pgbouncer_program) as proxy:
        assert is_listening(proxy.port)


def test_proxy_port_lost_to_another_program_is_replaced(
    access: DatabaseAccess, pgbouncer_program: PgbouncerProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free port that somebody takes before the proxy binds it costs one more try, no failure."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        taken = other.getsockname()[1]
        first = iter([taken])
        monkeypatch.setattr("emberpool_local.proxy.free_port", lambda: next(first, 0) or free_port())
        with LocalProxy(access, pgbouncer=pgbouncer_program) as opened:
            assert opened.port != taken
            assert is_listening(opened.port)
