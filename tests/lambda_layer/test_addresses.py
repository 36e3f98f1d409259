"""A name with several addresses: connections are spread over them, and one that is dead costs a part of the time."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import emberpool
from emberpool import ConnectionUnavailable
from emberpool import settings as names
from emberpool.waiting import _spread
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import DATABASE, PASSWORD, ROLE
from .named_host import NAME, named_host

Environment = Callable[..., None]

ALIVE = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
DEAD, CLOSED = "127.0.0.8", "127.0.0.9"
LIMIT_SECONDS = 0.2
OPENED = 48  # that one of three addresses is never the first happens once in 100 million runs


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL on three addresses, as three tasks have them."""
    with EmbeddedPostgres(settings={"listen_addresses": ", ".join(ALIVE)}) as postgres:
        postgres.create_role_and_database(ROLE, PASSWORD, DATABASE)
        yield postgres


@pytest.fixture
def dead(server: EmbeddedPostgres) -> Iterator[str]:
    """An address that drops the packets of new connections: its queue is full, and nobody takes from it."""
    waiting: list[socket.socket] = []
    with socket.create_server((DEAD, server.port), backlog=0):
        while True:
            client = socket.socket()
            client.setblocking(False)
            waiting.append(client)
            client.connect_ex((DEAD, server.port))
            if not select.select([], [client], [], 0.2)[1]:
                break
        yield DEAD
        for client in waiting:
            client.close()


@pytest.fixture
def function(environment: Environment, server: EmbeddedPostgres) -> Environment:
    """Sets a function's variables for NAME; the connect timeout is so long that whoever waits for it is found out."""

    def set_variables(**overrides: str) -> None:
        given = {
            names.HOST: NAME,
            names.PORT: str(server.port),
            names.CONNECT_TIMEOUT_SECONDS: "50",
            names.CONNECT_RETRY_SECONDS: "0",
            names.ADDRESS_TIMEOUT_SECONDS: str(LIMIT_SECONDS),
        }
        environment(**{**given, **overrides})

    set_variables()
    return set_variables


def address_of_a_connection() -> str:
    """Open a connection as any function does; return where it leads."""
    with emberpool.connect() as connection:
        return str(connection.execute("select host(inet_server_addr())").fetchone()[0])


def test_connections_are_spread_over_all_addresses(function: Environment, tmp_path: Path) -> None:
    """Whatever the resolver's order is, which is the same each time, no task gets all who start together."""
    with named_host(tmp_path, ALIVE) as call:
        seen = Counter(call(address_of_a_connection) for _ in range(OPENED))
    assert set(seen) == set(ALIVE)


def test_dead_address_costs_its_limit_and_not_the_connect_timeout(
    function: Environment, dead: str, tmp_path: Path
) -> None:
    """Every connection opens at one of the others, all together in less time than one dead attempt may take."""
    began = time.monotonic()
    with named_host(tmp_path, [dead, *ALIVE[1:]]) as call:
        seen = Counter(call(address_of_a_connection) for _ in range(OPENED))
    assert set(seen) == set(ALIVE[1:])
    assert time.monotonic() - began < 50, "a dead address took all the time that a connection has"


def test_time_is_shared_when_it_is_short(function: Environment, dead: str, tmp_path: Path) -> None:
    """With a limit above the connect timeout each address still gets a part: the one that lives is reached."""
    function(**{names.CONNECT_TIMEOUT_SECONDS: "2", names.ADDRESS_TIMEOUT_SECONDS: "60"})
    with named_host(tmp_path, [dead, ALIVE[0]]) as call:
        assert {call(address_of_a_connection) for _ in range(4)} == {ALIVE[0]}


def test_address_that_refuses_is_passed_over(function: Environment, tmp_path: Path) -> None:
    """A task that has just ended answers with a reset, and the next address is asked at once."""
    with named_host(tmp_path, [CLOSED, ALIVE[0]]) as call:
        assert {call(address_of_a_connection) for _ in range(8)} == {ALIVE[0]}


def test_error_names_each_address_when_none_is_left(function: Environment, dead: str, tmp_path: Path) -> None:
    """Refused by one and unanswered by the other: both are in the message."""
    function(**{names.CONNECT_TIMEOUT_SECONDS: "2"})
    with named_host(tmp_path, [dead, CLOSED]) as call, pytest.raises(ConnectionUnavailable) as caught:
        call(address_of_a_connection)
    assert f"{dead} accepts no connection" in str(caught.value)
    assert f'{CLOSED}", port' in str(caught.value) or f"({CLOSED}), port" in str(caught.value)
    assert "Connection refused" in str(caught.value)


def test_refused_login_is_not_tried_at_the_other_addresses(
    function: Environment, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A wrong password is wrong everywhere: it costs one attempt, as the proxy counts those."""
    function(**{names.PASSWORD: "wrong"})
    before = failed_logins(server)
    with named_host(tmp_path, ALIVE) as call, pytest.raises(ConnectionUnavailable, match="password authentication"):
        call(address_of_a_connection)
    assert failed_logins(server) - before == 1


def failed_logins(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.conninfo()):
        pass  # what was logged before it is in the file
    lines = [json.loads(line) for line in server.log_path.read_text().splitlines()]
    return sum("password authentication failed" in line["message"] for line in lines)


@pytest.fixture
def slow_port(server: EmbeddedPostgres) -> Iterator[tuple[int, list[str]]]:
    """A port where both addresses accept at once and answer after twice the limit; and who was accepted."""
    accepted: list[str] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((ALIVE[0], 0)))
        port = listener.getsockname()[1]
        for each in (listener, stack.enter_context(socket.create_server((ALIVE[1], port)))):
            threading.Thread(target=_answer_late, args=(each, server.port, accepted), daemon=True).start()
            stack.callback(each.shutdown, socket.SHUT_RDWR)
        yield port, accepted


def _answer_late(listener: socket.socket, port: int, accepted: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client = listener.accept()[0]
            accepted.append(client.getsockname()[0])
            time.sleep(2 * LIMIT_SECONDS)
            server = socket.socket()
            server.connect((ALIVE[2], port))  # create_connection asks the resolver, which a test may have replaced
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_forward, args=(source, sink), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_login_that_waits_in_line_is_not_given_up(
    function: Environment, slow_port: tuple[int, list[str]], tmp_path: Path
) -> None:
    """The limit is for an address to accept: one that did may need a database that resumes, and keeps its place."""
    port, accepted = slow_port
    function(**{names.PORT: str(port)})
    with named_host(tmp_path, ALIVE[:2]) as call:
        assert call(address_of_a_connection) == ALIVE[2]
    assert len(accepted) == 1


@pytest.mark.parametrize("kinds", [("10.0.0.1", "10.0.0.2", "fd00::1"), ("fd00::1", "fd00::2", "10.0.0.1")])
def test_kind_of_address_that_the_system_prefers_stays_first(kinds: tuple[str, str, str]) -> None:
    """IPv6 that does not work here was put last by the resolver, and stays there; within a kind it is mixed."""
    orders = {tuple(_spread([*kinds])) for _ in range(64)}
    assert orders == {kinds, (kinds[1], kinds[0], kinds[2])}


def test_single_address_needs_nothing_of_this(function: Environment, dead: Any, server: EmbeddedPostgres) -> None:
    """Behind a load balancer one address has all the time of a connection, and is not timed by the limit."""
    function(**{names.HOST: DEAD, names.CONNECT_TIMEOUT_SECONDS: "2", names.ADDRESS_TIMEOUT_SECONDS: "0.05"})
    began = time.monotonic()
    with pytest.raises(ConnectionUnavailable, match=f"timeout expired: {DEAD} accepts no connection"):
        address_of_a_connection()
    assert time.monotonic() - began >= 2
