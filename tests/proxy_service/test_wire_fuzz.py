"""Whatever clients send, PgBouncer and the agent live on and a good client is served throughout."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from .conftest import CLIENT_USER, DATABASE, Proxy, wait_until
from .wire_messages import SSL_REQUEST, framed, login_message, session_message, startup

MakeProxy = Callable[..., Proxy]
CASES = 180  # of each kind; ten rounds of all kinds of login messages
CONNECTS = 10_000
ENDS_WITHIN_SECONDS = 10.0
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of a goodbye, and no port in TIME_WAIT
BOUNDS = {"client_login_seconds": 1, "query_wait_seconds": 3, "query_timeout_seconds": 3}


@pytest.fixture(scope="module")
def tls_proxy(make_shared_proxy: MakeProxy) -> Proxy:
    return make_shared_proxy(**BOUNDS).start_ready()


@pytest.fixture(scope="module")
def plain_proxy(make_shared_proxy: MakeProxy) -> Proxy:
    """Without TLS, so that a test can write to a socket that psycopg has logged in."""
    return make_shared_proxy(client_tls_mode="disable", **BOUNDS).start_ready()


@contextmanager
def everybody_is_served(proxy: Proxy, **changes: str) -> Iterator[None]:
    """Query by one client that stays and others that come and go; afterwards no process is another."""
    before = (proxy.pgbouncer_pids(), proxy.agent_pid())
    failures: list[Exception] = []
    served = [0, 0]
    done = threading.Event()

    def query() -> None:
        try:
            with psycopg.connect(proxy.conninfo(**changes), autocommit=True) as staying:
                while not done.is_set() or not all(served):
                    staying.execute("select 1")
                    served[0] += 1
                    with psycopg.connect(proxy.conninfo(**changes), autocommit=True) as coming:
                        coming.execute("select 1")
                        served[1] += 1
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=query)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert (proxy.pgbouncer_pids(), proxy.agent_pid()) == before
    assert proxy.status("/healthz") == 200
    assert "Traceback" not in proxy.printed()


def connected(proxy: Proxy, port: str = "client_port") -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(proxy.setting(port))), timeout=ENDS_WITHIN_SECONDS)


def encrypted(proxy: Proxy) -> ssl.SSLSocket:
    plain = connected(proxy)
    plain.sendall(SSL_REQUEST)
    assert plain.recv(1) == b"S"
    context = ssl.create_default_context(cafile=f"{proxy.setting('run_folder')}/ca.crt")
    return context.wrap_socket(plain, server_hostname="localhost")


@contextmanager
def logged_in(proxy: Proxy) -> Iterator[socket.socket]:
    """The socket of a client that its driver has logged in."""
    with (
        psycopg.connect(proxy.conninfo(sslmode="disable")) as driver,
        socket.socket(fileno=os.dup(driver.fileno())) as client,
    ):
        client.settimeout(ENDS_WITHIN_SECONDS)
        yield client


def answer(client: socket.socket) -> bytes:
    """Everything until the other side closes; TimeoutError is a client that hangs for ever."""
    got = b""
    try:
        while data := client.recv(65_536):
            got += data
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        pass
    return got


def send(client: socket.socket, message: bytes) -> None:
    """Send it and say that nothing follows. Whoever closed before the end of a long message has answered."""
    try:
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
    except TimeoutError:
        raise
    except OSError:
        pass


@pytest.mark.parametrize("connect", [connected, encrypted])
def test_any_login_message_is_answered_or_refused(tls_proxy: Proxy, connect: Callable[[Proxy], socket.socket]) -> None:
    """Wrong, cut, oversized and repeated startup packets end their own connection and nobody else's."""
    with everybody_is_served(tls_proxy):
        for seed in range(CASES):
            with closing(connect(tls_proxy)) as client:
                send(client, login_message(seed, CLIENT_USER, DATABASE))
                answer(client)


def test_any_message_after_the_login_is_answered_or_refused(plain_proxy: Proxy) -> None:
    """Messages out of order, broken, oversized or unknown end their own session and nobody else's."""
    with everybody_is_served(plain_proxy, sslmode="disable"):
        for seed in range(CASES):
            with logged_in(plain_proxy) as client:
                send(client, session_message(seed))
                answer(client)


HALF_LOGINS = {
    "nothing": b"",
    "half a length": b"\0\0",
    "half a startup packet": startup(("user", CLIENT_USER), ("database", DATABASE))[:20],
    "no answer to the password request": startup(("user", CLIENT_USER), ("database", DATABASE)),
}


def test_login_that_never_ends_is_closed(tls_proxy: Proxy) -> None:
    """A client that stops anywhere before it is logged in, TLS handshake included, is closed in bounded time."""
    half_hello = b"\x16\x03\x01\x02\x00\x01\x00"
    with ExitStack() as stack, everybody_is_served(tls_proxy):
        hanging = [stack.enter_context(closing(connected(tls_proxy))) for _ in range(3)]
        hanging[1].sendall(SSL_REQUEST)
        hanging[2].sendall(SSL_REQUEST)
        assert hanging[2].recv(1) == b"S"
        hanging[2].sendall(half_hello)
        for half in HALF_LOGINS.values():
            hanging.append(stack.enter_context(closing(encrypted(tls_proxy))))
            hanging[-1].sendall(half)
        answers = [answer(client) for client in hanging]
    assert b"client_login_timeout" in answers[0]
    for answered in answers[-len(HALF_LOGINS) :]:
        assert b"client_login_timeout" in answered


HALF_MESSAGES = {
    "a message without its body": framed(b"Q", b"", 1000),
    "half a message": framed(b"Q", b"select 1", 1000),
    "half of a long message": framed(b"Q", b"select 1" + b" " * 20_000, 100_000),
    "no end of an extended query": framed(b"P", b"\0select 1\0\0\0"),
}


@pytest.mark.parametrize("half", HALF_MESSAGES.values(), ids=HALF_MESSAGES)
def test_half_a_message_does_not_hold_a_server_connection_for_ever(plain_proxy: Proxy, half: bytes) -> None:
    """A client that hangs in mid-message gets a server connection, and loses it after query_timeout_seconds."""
    with logged_in(plain_proxy) as client:
        client.sendall(half)
        assert b"query timeout" in answer(client)


def test_clients_that_hang_in_mid_message_delay_others_for_bounded_time(plain_proxy: Proxy) -> None:
    """With every server connection held by a half message, clients are served again when the messages time out."""
    with ExitStack() as stack:
        for _ in range(int(plain_proxy.setting("max_server_connections"))):
            stack.enter_context(logged_in(plain_proxy)).sendall(HALF_MESSAGES["half a message"])

        def is_served() -> bool:
            try:
                with psycopg.connect(plain_proxy.conninfo(sslmode="disable")) as good:
                    good.execute("select 1")
            except psycopg.OperationalError:
                return False
            return True

        wait_until("nobody is served any more", is_served)


def test_ten_thousand_connects_leave_nothing_behind(tls_proxy: Proxy) -> None:
    """Clients that connect and go, as health checks and port scans do, cost no descriptor and no log line."""
    descriptors = Path(f"/proc/{tls_proxy.pgbouncer_pid()}/fd")
    before, lines = len(list(descriptors.iterdir())), len(tls_proxy.log_lines())
    with everybody_is_served(tls_proxy):
        for number in range(CONNECTS):
            with connected(tls_proxy) as client:
                if number % 10:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    wait_until("descriptors were left open", lambda: len(list(descriptors.iterdir())) <= before + 2)
    assert len(tls_proxy.log_lines()) < lines + CONNECTS // 100


def test_garbage_on_the_health_port_ends_its_own_connection(tls_proxy: Proxy) -> None:
    """What is not HTTP, and requests that never end, do not keep others from the health port."""
    with ExitStack() as stack:
        for seed in range(CASES):
            client = stack.enter_context(closing(connected(tls_proxy, "health_port")))
            client.sendall((b"GET /healthz HTTP/1.1\r\nHost: x", login_message(seed, CLIENT_USER, DATABASE))[seed % 2])
        assert tls_proxy.status("/healthz") == 200
        assert tls_proxy.status("/readyz") == 200
    assert "Traceback" not in tls_proxy.printed()


def test_client_cannot_forge_a_log_line(tls_proxy: Proxy) -> None:
    """A line break in what a client sends does not begin a line that is taken for PgBouncer's own."""
    forged = "2026-01-31 12:00:00.123 UTC [1] ERROR S-0x1: a/b@127.0.0.1:1 server login failed: FATAL forged"
    with everybody_is_served(tls_proxy):
        for packet in (
            startup(("user", CLIENT_USER), ("database", DATABASE), (f"x\n{forged}", "")),
            startup(("user", CLIENT_USER), ("database", DATABASE), ("options", f"-c x\n{forged}=1")),
            startup(("user", f"x\n{forged}"[:60]), ("database", DATABASE)),
        ):
            with closing(encrypted(tls_proxy)) as client:
                send(client, packet)
                answer(client)
        wait_until("the refusal was not logged", lambda: "unsupported startup parameter" in tls_proxy.printed())
    assert not [line for line in tls_proxy.log_lines() if line["level"] == "ERROR"]
