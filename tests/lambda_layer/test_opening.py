"""How long a connection may take to open inside of an invocation, and whether it is opened again."""

from __future__ import annotations

import contextlib
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from emberpool import ConnectionUnavailable, DeadlineTooClose, SecretUnavailable, declared, warm_connection
from emberpool import settings as names
from emberpool.settings import LayerSettings
from emberpool.waiting import within
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import Context

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]

# Shorter than every other bound: libpq's floor of 2 s, EMBERPOOL_CONNECT_TIMEOUT_SECONDS, retries, Secrets Manager's.
# The margin is long, so that a slow machine does not use it up.
REMAINING_MS, MARGIN_MS = 1500, 1100


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port where connections are accepted and never answered."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for each in accepted:
        each.close()


@pytest.fixture
def answers() -> Iterator[threading.Event]:
    """What holds up whoever waits for it, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def long_margin(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.DEADLINE_MARGIN_MS, str(MARGIN_MS))


class Lambda:
    """An invocation that Lambda would end at its timeout: `run` says whether the handler's end came before it."""

    def __init__(self, remaining_ms: int = REMAINING_MS) -> None:
        self._context = Context(remaining_ms)
        self._remaining_ms = remaining_ms

    def run(self, handler: Callable[..., Any]) -> Any:
        ends_at = time.monotonic() + self._remaining_ms / 1000
        try:
            return handler({}, self._context)
        finally:
            assert time.monotonic() < ends_at, "Lambda would have ended the invocation"


def decorated(transaction: bool = True) -> Callable[..., int]:
    @warm_connection(transaction=transaction)
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> int:
        return connection.execute("select pg_backend_pid()").fetchone()[0]

    return handler


# --- within the invocation's time


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "autocommit"])
def test_mute_database_is_an_error_before_the_invocation_ends(
    environment: Environment, mute_port: int, transaction: bool
) -> None:
    """A server that accepts and never answers leaves the handler its margin, however long connecting may take."""
    environment(**{names.PORT: str(mute_port)})
    with pytest.raises(ConnectionUnavailable, match=r"timeout expired"):
        Lambda().run(decorated(transaction))


def test_mute_database_without_a_deadline_ends_with_the_connect_timeout(
    environment: Environment, mute_port: int
) -> None:
    """Outside of an invocation EMBERPOOL_CONNECT_TIMEOUT_SECONDS is the bound."""
    environment(**{names.PORT: str(mute_port), names.CONNECT_TIMEOUT_SECONDS: "2", names.CONNECT_RETRY_SECONDS: "0"})
    with pytest.raises(ConnectionUnavailable, match="timeout expired"):
        decorated()({}, None)


async def test_lambda_never_ends_an_invocation_for_a_mute_database(tmp_path: Path, mute_port: int) -> None:
    """In the real runtime client, with the opening begun during init: an error of ours and not Lambda's timeout."""
    source = """
        from emberpool import warm_connection
        @warm_connection
        def handler(event, context, connection):
            return 1
    """
    (tmp_path / "app.py").write_text(textwrap.dedent(source))
    variables = {names.HOST: "127.0.0.1", names.PORT: str(mute_port), names.USER: "u", names.PASSWORD: "hush"}
    variables |= {names.SSLMODE: "disable", names.CONNECT_TIMEOUT_SECONDS: "60", names.DEADLINE_MARGIN_MS: "3000"}
    async with Fleet("app:handler", tmp_path, variables, start_method="process", timeout_seconds=4) as fleet:
        outcomes = [await fleet.invoke(b"{}") for _ in range(2)]
    assert [(each.status, each.error_type) for each in outcomes] == [("failed", "ConnectionUnavailable")] * 2
    assert "hush" not in str(outcomes)


def test_opening_that_began_before_the_invocation_is_not_waited_for_too_long(
    environment: Environment, mute_port: int
) -> None:
    """An invocation that finds its connection still being opened in the background ends in time, too."""
    environment(**{names.PORT: str(mute_port)})
    handler = decorated()
    warm = declared.shared_connection(LayerSettings.from_environment())
    with warm._opening, ThreadPoolExecutor(1) as other_thread:
        invocation = other_thread.submit(Lambda().run, handler)
        with pytest.raises(ConnectionUnavailable, match="still being opened"):
            invocation.result()


def test_secret_that_does_not_come_is_an_error_before_the_invocation_ends(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    """A Secrets Manager that does not answer in time is named, and what it says later serves the next invocation."""
    environment(**{names.PASSWORD: None, names.SECRET_ARN: "client"})
    monkeypatch.setattr("emberpool.secret_sources.from_extension", lambda _: answers.wait(60) or "")
    with pytest.raises(SecretUnavailable, match="reach the secret client faster"):
        Lambda().run(decorated())


def test_name_that_is_looked_up_for_ever_is_an_error_before_the_invocation_ends(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    """A name server that does not answer costs the invocation no more than its time."""
    environment(**{names.HOST: "db.internal"})
    monkeypatch.setattr("emberpool.waiting.socket.getaddrinfo", lambda *_, **__: answers.wait(60) or [])
    with pytest.raises(ConnectionUnavailable, match='no address of the host "db.internal"'):
        Lambda().run(decorated())


def test_invocation_without_time_opens_nothing(environment: Environment, mute_port: int) -> None:
    """With no more than the margin left the error says so, in autocommit mode too."""
    environment(**{names.PORT: str(mute_port)})
    with pytest.raises(DeadlineTooClose, match="nothing has run"):
        Lambda(MARGIN_MS).run(decorated(transaction=False))


def test_later_invocation_opens_the_connection_that_an_earlier_one_could_not(
    environment: Environment, admin: Admin, database: EmbeddedPostgres, mute_port: int
) -> None:
    """Nothing of an attempt that was given up stays behind: the next invocation has a connection that works."""
    environment(**{names.PORT: str(mute_port)})
    with pytest.raises(ConnectionUnavailable):
        Lambda().run(decorated())
    environment(**{names.PORT: str(database.port)})
    assert decorated()({}, Context()) > 0


# --- what libpq does itself, done by us


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_host_is_found_by_name_and_by_address(environment: Environment, admin: Admin, host: str) -> None:
    """A name, which may have several addresses, and an address both lead to the database; psycopg shows the host."""
    environment(**{names.HOST: host})

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> str:
        return connection.info.host

    assert handler({}, Context()) == host


def test_second_address_of_a_name_is_used_when_the_first_refuses(
    environment: Environment, admin: Admin, database: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load balancer's name has an address in each zone: one that is away does not fail the connection."""
    addresses = [(socket.AF_INET, 0, 0, "", (address, database.port)) for address in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr("emberpool.waiting.socket.getaddrinfo", lambda *_, **__: addresses)
    environment(**{names.HOST: "db.internal"})
    assert decorated()({}, Context()) > 0


def test_host_without_an_address_is_not_tried_again(environment: Environment) -> None:
    """A misspelt host fails at once and names itself."""
    environment(**{names.HOST: "nowhere.invalid", names.CONNECT_RETRY_SECONDS: "600"})
    with pytest.raises(ConnectionUnavailable, match=r'could not translate host name "nowhere.invalid"'):
        decorated()({}, None)


def test_waiting_passes_on_what_is_raised() -> None:
    """An error in what is waited for is the caller's error, unchanged."""
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)


# --- trying again


def test_full_database_is_tried_again_within_bounds(environment: Environment, admin: Admin) -> None:
    """A connection refused for too many clients is tried again until there is room."""
    admin.execute("alter role layer_user connection limit 0")
    room = threading.Timer(0.5, admin.execute, ["alter role layer_user connection limit -1"])
    room.start()
    try:
        assert decorated()({}, Context()) > 0
    finally:
        room.join()


def test_trying_again_ends(environment: Environment, admin: Admin) -> None:
    """A database that stays full is a clear error once EMBERPOOL_CONNECT_RETRY_SECONDS are over."""
    environment(**{names.CONNECT_RETRY_SECONDS: "0.3"})
    admin.execute("alter role layer_user connection limit 0")
    try:
        with pytest.raises(ConnectionUnavailable, match="too many connections for role"):
            decorated()({}, Context())
    finally:
        admin.execute("alter role layer_user connection limit -1")


def test_connection_is_opened_while_the_module_loads(
    environment: Environment, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Lambda the decorator opens the connection in the background, and the first invocation uses that one."""
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
    handler = decorated()
    warm = declared.shared_connection(LayerSettings.from_environment())
    until = time.monotonic() + 10
    while not warm.is_open:
        assert time.monotonic() < until, "the connection was not opened before the first invocation"
        time.sleep(0.01)
    prewarmed = warm._connection.info.backend_pid
    assert handler({}, Context()) == prewarmed
