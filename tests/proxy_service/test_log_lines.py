"""What PgBouncer's own log lines mean, proven with the lines that the real one writes, and how they are logged."""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_local.host.ports import free_port
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.log import LINES_PER_SECOND, MOST_KINDS, JsonFormatter, PgbouncerLog, logger
from emberpool_proxy.pgbouncer.log_lines import (
    ClientGaveUpWaiting,
    ClientLoginFailed,
    LogLine,
    ServerConnectionLost,
    ServerLoginFailed,
    ServerUnreachable,
    Side,
    event_of,
    parse,
)
from emberpool_proxy.tls.authority import Authority, utc_now

from .bare_pgbouncer import (
    CLIENT,
    CLIENT_PASSWORD,
    DATABASE,
    ROLE,
    ROLE_PASSWORD,
    BarePgbouncer,
    add_role,
    bare_pgbouncer,
    served,
)
from .conftest import wait_until

WRONG_PASSWORD = "wrong-server-password"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@pytest.fixture(scope="module")
def bare(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    """A PgBouncer with TLS for clients and databases of every kind of trouble, as quick to give up as can be."""
    add_role(postgres)
    databases = {
        DATABASE: served(postgres) + " pool_size=1",
        "wrong_password": served(postgres, role="wrong"),
        "unknown_role": served(postgres, role="nobody_there"),
        "gone": served(postgres, database="not_there"),
        "closed_port": f"host=127.0.0.1 port={free_port()} user={ROLE}",
        "no_host": f"host=no-such-host.invalid user={ROLE}",
    }
    users = {"wrong": WRONG_PASSWORD, "nobody_there": WRONG_PASSWORD}
    with TempFolder("certificate") as folder:
        for name, pem in zip(("crt", "key"), Authority.make(utc_now()).issue((), utc_now()), strict=True):
            (folder / name).write_text(pem)
            give_to(server_user(), folder / name)
        settings = {
            "client_tls_sslmode": "allow",
            "client_tls_cert_file": f"{folder}/crt",
            "client_tls_key_file": f"{folder}/key",
            "client_login_timeout": "1",
            "query_wait_timeout": "1",
            "server_login_retry": "0.1",
        }
        with bare_pgbouncer(pgbouncer_program, databases, users, settings) as running:
            yield running


def refused(bare: BarePgbouncer, **changes: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(bare.conninfo(**changes), connect_timeout=5).execute("select 1")


def sent(bare: BarePgbouncer, *packets: bytes) -> None:
    with socket.create_connection(("127.0.0.1", bare.port), timeout=5) as connection:
        for packet in packets:
            connection.sendall(packet)
            connection.recv(100)


def events(bare: BarePgbouncer, cause: Callable[[], None], kind: type, seconds: float = 5) -> list[Any]:
    """Return the events of one kind of the lines that `cause` made; at least one."""
    before = len(bare.log_lines())
    cause()

    def found() -> list[Any]:
        return [event for line in bare.log_lines()[before:] if isinstance(event := event_of(line), kind)]

    return wait_until(f"no {kind.__name__} in {bare.log_lines()[before:]}", found, seconds)


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        (
            "wrong_password",
            ServerLoginFailed("", "wrong", "", 'password authentication failed for user "wrong"'),
        ),
        (
            "unknown_role",
            ServerLoginFailed("", "nobody_there", "", 'password authentication failed for user "nobody_there"'),
        ),
        ("gone", ServerLoginFailed("not_there", "", "", 'database "not_there" does not exist')),
    ],
)
def test_login_that_the_database_refuses_is_one_event(
    bare: BarePgbouncer, database: str, expected: ServerLoginFailed
) -> None:
    """A wrong server password, an unknown role, a database that is gone: one event each, and none of the client's."""
    before = len(bare.log_lines())
    assert events(bare, lambda: refused(bare, dbname=database), ServerLoginFailed)[0] == expected
    assert expected.is_about_credentials == (database != "gone")
    lines = bare.log_lines()[before:]
    assert not [line for line in lines if isinstance(event_of(line), ClientLoginFailed)]


def test_database_that_cannot_be_reached_is_told(bare: BarePgbouncer) -> None:
    """A closed port and a name without an address are told with the pool they are of, and so is waiting in vain."""
    before = len(bare.log_lines())
    (first, *_) = events(bare, lambda: refused(bare, dbname="closed_port"), ServerUnreachable)
    assert (first.database, first.user, first.reason) == ("closed_port", ROLE, "connect failed")
    (waited, *_) = events(bare, lambda: refused(bare, dbname="no_host"), ClientGaveUpWaiting)
    assert (waited.database, waited.user, waited.address) == ("no_host", CLIENT, "127.0.0.1")
    reasons = {
        event.reason for line in bare.log_lines()[before:] if isinstance(event := event_of(line), ServerUnreachable)
    }
    assert "server DNS lookup failed" in reasons


def test_tls_that_fails_to_the_database_is_told(
    postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram
) -> None:
    """A database without TLS where TLS is required is unreachable, with the reason."""
    add_role(postgres)
    settings = {"server_tls_sslmode": "require", "query_wait_timeout": "1"}
    with bare_pgbouncer(pgbouncer_program, {DATABASE: served(postgres)}, settings=settings) as bare:
        (event, *_) = events(bare, lambda: refused(bare), ServerUnreachable)
    assert (event.database, event.user, event.reason) == (DATABASE, ROLE, "server refused SSL")


def test_lost_connections_to_the_database_are_told(bare: BarePgbouncer, postgres: EmbeddedPostgres) -> None:
    """A backend that ends while a transaction runs, and one that ends while it is idle, are both told."""

    def end_backends() -> None:
        with psycopg.connect(postgres.conninfo(), autocommit=True) as superuser:
            superuser.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [ROLE])

    with closing(psycopg.connect(bare.conninfo())) as client:
        client.execute("select 1")
        (busy, *_) = events(bare, end_backends, ServerConnectionLost)
    assert (busy.database, busy.reason) == (DATABASE, "server conn crashed?")
    with closing(psycopg.connect(bare.conninfo(), autocommit=True)) as client:
        client.execute("select 1")
        (idle, *_) = events(bare, end_backends, ServerConnectionLost)
    assert (idle.database, idle.user, idle.reason) == (DATABASE, ROLE, "ended by the database")


@pytest.mark.parametrize(
    ("changes", "database", "user", "cause", "reason"),
    [
        ({"password": "wrong"}, DATABASE, CLIENT, "credentials", "SASL authentication failed"),
        ({"user": "stranger"}, "", "stranger", "not_allowed", "no authentication method is found"),
        ({"user": "st/ran@ger"}, "", "st/ran@ger", "not_allowed", "no authentication method is found"),
        ({"dbname": "missing"}, "", CLIENT, "not_allowed", "no such database: missing"),
        ({"user": ROLE, "password": ROLE_PASSWORD}, DATABASE, ROLE, "not_allowed", "login rejected"),
        ({"dbname": "tls_only"}, "", CLIENT, "not_allowed", "login rejected"),
        ({"dbname": "pgbouncer"}, "pgbouncer", CLIENT, "not_allowed", "not allowed"),
        ({"options": "-c geqo=off"}, "", "", "protocol", "unsupported startup parameter in options: geqo"),
    ],
)
def test_refused_client_is_one_event_with_its_address(
    bare: BarePgbouncer, changes: dict[str, str], database: str, user: str, cause: str, reason: str
) -> None:
    """Each way of being refused is one event: who, from where, why; the password is nowhere in the log."""
    (event,) = events(bare, lambda: refused(bare, **changes), ClientLoginFailed)
    assert event == ClientLoginFailed(database, user, "127.0.0.1", reason, cause)
    log = "\n".join(bare.log_lines())
    assert CLIENT_PASSWORD not in log
    assert ROLE_PASSWORD not in log
    assert WRONG_PASSWORD not in log


def test_unencrypted_client_is_told_that_tls_is_required(
    bare: BarePgbouncer, postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram
) -> None:
    """Where TLS is required, a client without is refused with the event that says so."""
    ini = (bare.folder / "pgbouncer.ini").read_text()
    tls = dict(line.split(" = ") for line in ini.splitlines() if line.startswith("client_tls_"))
    tls["client_tls_sslmode"] = "require"
    with bare_pgbouncer(pgbouncer_program, {DATABASE: served(postgres)}, settings=tls) as strict:
        (event,) = events(strict, lambda: refused(strict), ClientLoginFailed)
    assert (event.address, event.cause, event.reason) == ("127.0.0.1", "not_allowed", "SSL required")


@pytest.mark.parametrize(
    ("packets", "cause", "beginning"),
    [
        ([b"\xff" * 300], "protocol", "bad packet header"),
        ([struct.pack("!ii", 9, 196608) + b"\0"], "protocol", "no username supplied"),
        ([SSL_REQUEST, b"GET / HTTP/1.0\r\n\r\n"], "tls", "TLS handshake error: "),
        ([b"\0\0"], "protocol", "client_login_timeout"),
    ],
)
def test_garbage_on_the_wire_is_one_event(
    bare: BarePgbouncer, packets: list[bytes], cause: str, beginning: str
) -> None:
    """Bytes that are no PostgreSQL, and half a message that is left hanging, are one event each."""

    def garbage() -> None:
        try:
            sent(bare, *packets)
        except ConnectionResetError:
            return

    (event, *more) = events(bare, garbage, ClientLoginFailed)
    assert not more
    assert event.cause == cause
    assert event.reason.startswith(beginning)


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-31 12:00:00.123 UTC [42] LOG S-0x5: db/role@10.0.0.9:5432 new connection to server (from 10.0.0.1:9)",
        "2026-01-31 12:00:00.123 UTC [42] LOG C-0x5: db/user@10.0.0.9:9 closing because: client close request (age=1s)",
        "2026-01-31 12:00:00.123 UTC [42] LOG stats: 0 xacts/s, 0 queries/s",
        "2026-01-31 12:00:00.123 UTC [42] LOG S-0x5: db/role@10.0.0.9:5 closing because: server lifetime over (age=9s)",
        "\tthe rest of a message of two lines: server login failed: FATAL x",
        "not PgBouncer's form",
        "",
    ],
)
def test_ordinary_lines_are_no_events(line: str) -> None:
    """Lines of daily work, and what is not in PgBouncer's form, mean nothing and lose no word."""
    assert event_of(line) is None
    assert parse(line).message in line


def test_address_of_ipv6_and_of_a_unix_socket_is_understood() -> None:
    """The brackets of IPv6 are taken off, and a local client's process is its address."""
    line = "2026-01-31 12:00:00.123 UTC [42] WARNING C-0x5: db/user@[2001:db8::7]:4711 pooler error: login rejected"
    assert parse(line) == LogLine(
        "WARNING", "pooler error: login rejected", 42, Side.CLIENT, "db", "user", "2001:db8::7", 4711
    )
    local = parse("2026-01-31 12:00:00.123 UTC [42] LOG C-0x5: db/user@unix(77):6432 hello")
    assert (local.address, local.message) == ("unix(77)", "hello")


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(lambda name: "/" not in name)


@given(NAMES, NAMES, st.ip_addresses(v=4), st.integers(1, 65535))
def test_client_cannot_hide_its_address_behind_its_name(user: str, imitated: str, ip: object, port: int) -> None:
    """Whatever a client calls itself, a form like PgBouncer's own included, its address is the one it came from."""
    name = f"{imitated}@6.6.6.6:6 pooler error: login rejected {user}"
    for chosen in (user, name):
        parsed = parse(
            f"2026-01-31 12:00:00.1 UTC [1] WARNING C-0x5: db/{chosen}@{ip}:{port} pooler error: no such user"
        )
        assert (parsed.user, parsed.address, parsed.port) == (chosen, str(ip), port)


@given(st.text())
def test_no_line_breaks_the_reader(line: str) -> None:
    """Any text at all is read without an error, and nothing of it is lost."""
    assert parse(line).message in line
    event_of(line)
    parsed = parse(f"2026-01-31 12:00:00.123 UTC [42] WARNING {line}")
    assert parsed.message in line
    event_of(parsed)


# --- how the lines are logged


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()
    yield stream
    logger.manager._clear_cache()


def logged(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def refusal(user: str = "function", reason: str = "SASL authentication failed", port: int = 1) -> str:
    return f"2026-01-31 12:00:00.1 UTC [1] WARNING C-0x5: db/{user}@10.0.0.7:{port} pooler error: {reason}"


def test_refused_client_is_logged_with_user_and_address(printed: io.StringIO) -> None:
    """The JSON line holds side, database, user and address as fields of their own."""
    PgbouncerLog(1).relay(refusal())
    (line,) = logged(printed)
    assert line.pop("time")
    assert line == {
        "level": "WARNING",
        "source": "pgbouncer",
        "message": "pooler error: SASL authentication failed",
        "process": 1,
        "side": "client",
        "database": "db",
        "user": "function",
        "address": "10.0.0.7",
    }


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("LOG process up: PgBouncer 1.24.1", "INFO"),
        ("FATAL @src/main.c:1 in function main(): cannot listen on any socket", "ERROR"),
        ("ERROR C-0x5: db/function@10.0.0.7:1 password authentication failed", "WARNING"),
        ("LOG C-0x5: db/function@10.0.0.7:1 closing because: client close request (age=2s)", "DEBUG"),
        ("LOG S-0x5: db/role@10.0.0.7:1 closing because: server lifetime over (age=900s)", "DEBUG"),
        ("LOG S-0x5: db/role@10.0.0.7:1 closing because: too many servers in the pool (age=9s)", "DEBUG"),
        ("LOG RELOAD command issued", "DEBUG"),
        ("LOG S-0x5: db/role@10.0.0.7:1 closing because: connect failed (age=0s)", "WARNING"),
        ("LOG S-0x5: db/role@10.0.0.7:1 new connection to server (from 10.0.0.1:2)", "INFO"),
    ],
)
def test_level_says_who_must_act(printed: io.StringIO, text: str, level: str) -> None:
    """A client's fault is a warning, a database out of reach too, coming and going is for DEBUG only."""
    PgbouncerLog().relay(f"2026-01-31 12:00:00.1 UTC [1] {text}")
    assert [line["level"] for line in logged(printed)] == [level]


def test_storm_of_refused_logins_is_bounded_and_counted(printed: io.StringIO) -> None:
    """5,000 refused logins in a second are a few lines and the number of the rest; every one is still an event."""
    now = [0.0]
    log = PgbouncerLog(clock=lambda: now[0])
    found = [log.relay(refusal(user=f"user_{n}", port=n + 1)) for n in range(5000)]
    assert all(isinstance(event, ClientLoginFailed) for event in found)
    log.relay("2026-01-31 12:00:00.1 UTC [1] WARNING something else")
    assert len(logged(printed)) == LINES_PER_SECOND + 1
    now[0] = 1.5
    log.flush()
    last = logged(printed)[-1]
    assert last["lines_left_out"] == 5000 - LINES_PER_SECOND
    assert last["message"] == "lines like this were left out: pooler error: SASL authentication failed"
    log.relay(refusal())
    assert logged(printed)[-1]["message"] == "pooler error: SASL authentication failed"


@given(st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs"))), min_size=1, max_size=300))
def test_words_that_clients_choose_cannot_flood_the_log(reasons: list[str]) -> None:
    """However many kinds of lines a client makes up, the lines of a second are bounded."""
    counted: list[str] = []
    log = PgbouncerLog(clock=lambda: 0.0)
    handler = logging.Handler()
    handler.emit = lambda record: counted.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [handler], False
    try:
        for reason in reasons * 20:
            log.relay(refusal(reason=f"unsupported startup parameter: {reason}"))
    finally:
        logger.handlers[:], logger.propagate = before
    assert len(counted) <= (MOST_KINDS + 1) * LINES_PER_SECOND
