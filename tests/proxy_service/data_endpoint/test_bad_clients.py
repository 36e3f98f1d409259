"""Clients that are slow, that go away, or come in great numbers: others are served, and nothing of them stays."""

from __future__ import annotations

import random
import re
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from ..conftest import Proxy, wait_until
from .raw_http import Answer, RawEndpoint, read_answers, statement
from .served import start_endpoint

MIB = 1024 * 1024
MOST_SESSIONS = 8
CLIENTS, ROUNDS = 4, 10
MOST_KEPT_BYTES = 24 * MIB  # of forty rounds: little more than one of their large results
FILES_OF_OWN = 8  # beside sessions: what the runtime opens once on its way
MORE_MEMORY_BYTES = 120 * MIB  # the room of all bodies is 64, and a request may be there twice for a moment
ABORTING = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset


@pytest.fixture(scope="module")
def shared(make_shared_proxy: Callable[..., Proxy]) -> RawEndpoint:
    """An endpoint that has little patience with who is slow."""
    proxy = start_endpoint(
        make_shared_proxy,
        data_header_seconds=2,
        data_body_seconds=2,
        data_tls_mode="disable",
        data_most_sessions=MOST_SESSIONS,
        data_response_bytes=16 * MIB,
    )
    return RawEndpoint(proxy)


@pytest.fixture
def endpoint(shared: RawEndpoint) -> Iterator[RawEndpoint]:
    """The endpoint, which must serve as before when the test is over."""
    assert shared.rows("select 1") == [[1]]
    files = shared.open_files()
    yield shared
    shared.assert_serves_as_before(files + MOST_SESSIONS + FILES_OF_OWN)
    assert shared.rows("select count(*) from pg_stat_activity where state like 'idle in transaction%'") == [[0]]


@contextmanager
def connections(endpoint: RawEndpoint, number: int) -> Iterator[list[socket.socket]]:
    """Several connections at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(endpoint.connection()) for _ in range(number)]


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended it; reads what has come before."""
    connection.settimeout(0.001)
    try:
        return connection.recv(65_536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_client_that_drips_its_headers_is_closed(endpoint: RawEndpoint) -> None:
    """The time is for all headers together: a byte now and then does not lengthen it (slow loris)."""
    request = endpoint.request(statement("select 1"))
    with connections(endpoint, 50) as opened:
        slow = opened
        dripped = iter(request[:-100])
        until = time.monotonic() + 20
        while slow and time.monotonic() < until:
            byte = bytes([next(dripped)])
            for connection in slow:
                with suppress(OSError):
                    connection.send(byte)
            assert endpoint.rows("select 2") == [[2]]
            slow = [connection for connection in slow if not is_closed(connection)]
        assert slow == []


def test_client_that_drips_its_body_gets_one_error(endpoint: RawEndpoint) -> None:
    """So it is with the body, which has its own time."""
    request = endpoint.request(statement("select 1"))
    head = request.index(b"\r\n\r\n") + 4
    with connections(endpoint, 20) as slow:
        for connection in slow:
            connection.sendall(request[: head + 5])
        assert endpoint.rows("select 2") == [[2]]
        for connection in slow:
            with connection.makefile("rb") as incoming:
                (answer,) = read_answers(incoming)
            assert (answer.status, answer.error) == (400, "BadRequestException")
            assert "did not arrive within 2 s" in answer.message


def test_thousands_of_silent_connections_are_closed_in_time(endpoint: RawEndpoint) -> None:
    """They keep nobody out while they are there, and are gone when their time is over."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connections(endpoint, min(3000, soft - 500)) as silent:
        assert endpoint.rows("select 2") == [[2]]
        wait_until("silent connections stay", lambda: is_closed(silent[0]) and is_closed(silent[-1]))


def test_many_large_bodies_at_once_have_bounded_memory(endpoint: RawEndpoint) -> None:
    """Strangers' large requests find room or are told to come again; the task's memory is not theirs."""
    before = endpoint.memory_bytes()
    body = b" " * (4 * MIB - 1000)
    head = b"POST /Execute HTTP/1.1\r\nHost: any\r\nContent-Length: %d\r\n\r\n" % (4 * MIB)
    most = 0

    def send(_: int) -> list[Answer]:
        with endpoint.connection() as connection, connection.makefile("rb") as incoming:
            with suppress(OSError):
                connection.sendall(head + body)  # all but the end of it
            return list(read_answers(incoming))

    with ThreadPoolExecutor(60) as senders:
        sent = [senders.submit(send, number) for number in range(60)]
        while not all(each.done() for each in sent):
            most = max(most, endpoint.memory_bytes())
            assert endpoint.rows("select 2") == [[2]]
    kinds = {answer.error for each in sent for answer in each.result()}
    assert kinds <= {"ServiceUnavailableError", "BadRequestException"}
    assert most - before < MORE_MEMORY_BYTES


def test_clients_that_reset_in_the_middle_leave_nothing(endpoint: RawEndpoint) -> None:
    """Wherever in its request or its answer a client goes away, its statement ends and its session is another's."""
    requests = [
        endpoint.request(statement(sql))
        for sql in (
            "select 1",
            "select repeat('x', 1000000) from generate_series(1, 10)",
            "select pg_sleep(30)::text, 'reset'::text",
        )
    ]
    dice = random.Random(7)

    def go_away(number: int) -> None:
        request = requests[number % 3]
        with endpoint.connection() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTING)
            connection.sendall(request[: dice.choice((len(request), dice.randrange(1, len(request))))])
            time.sleep(dice.choice((0, 0.005, 0.05)))
            connection.settimeout(0.01)
            with suppress(TimeoutError):
                connection.recv(dice.choice((1, 1000)))

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(go_away, range(150)))
    running = "select count(*) from pg_stat_activity where query like '%''reset''%' and pid <> pg_backend_pid()"
    active = f"{running} and state = 'active'"
    wait_until("statements of who has gone still run", lambda: endpoint.rows(active) == [[0]])


def test_client_that_never_reads_its_answer_holds_up_nobody(endpoint: RawEndpoint) -> None:
    """An answer of 10 MB waits in its connection only; the session that it came from is another's already."""
    large = endpoint.request(statement("select repeat('x', 1000000) from generate_series(1, 10)"))
    with connections(endpoint, MOST_SESSIONS + 2) as deaf:
        for connection in deaf:
            connection.sendall(large)
        for number in range(20):
            assert endpoint.rows(f"select {number}") == [[number]]


@pytest.mark.parametrize("megabytes", [200, 900])
def test_row_of_any_size_ends_its_own_call_only(endpoint: RawEndpoint, megabytes: int) -> None:
    """The process does not ask for the memory that is the task's, and serves others meanwhile."""
    before = endpoint.most_address_space_bytes()
    with endpoint.connection() as connection, connection.makefile("rb") as incoming:
        connection.sendall(endpoint.request(statement(f"select repeat('x', {megabytes}000000)")))
        for number in range(20):
            assert endpoint.rows(f"select {number}") == [[number]]
        answer = next(read_answers(incoming))
    assert answer.status == 400
    assert re.search("a row of the result is too large|more than the allowed response size", answer.message)
    assert endpoint.most_address_space_bytes() - before < 700 * MIB


def test_no_memory_is_lost_over_thousands_of_requests(endpoint: RawEndpoint) -> None:
    """Good and bad requests of several clients, each remembered for a resend: the process grows by the answers only."""
    bodies = {
        statement("select :n::int", parameters=[{"name": "n", "value": {"longValue": 5}}]): 200,
        statement("values (1, null, 'a'), (2, 'b', 'c')", includeResultMetadata=True): 200,
        statement("select wrong"): 400,
        statement("select 1 / 0 -- " + "x" * 50_000): 400,
        statement("select repeat('x', 18000000)"): 400,
        statement("select 1", transactionId="unknown"): 404,
        statement("select :n", parameters=[{"name": "n", "value": {"longValue": "x"}}]): 400,
        b"{": 400,
    }

    def rounds(client: int) -> None:
        with endpoint.connection() as connection, connection.makefile("rb") as incoming:
            for number in range(ROUNDS):
                name = ("amz-sdk-invocation-id", f"{client} {number}")
                connection.sendall(b"".join(endpoint.request(body, signed=[name]) for body in bodies))
                answers = read_answers(incoming)
                assert [next(answers).status for _ in bodies] == list(bodies.values())

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(rounds, range(CLIENTS)))
        before = endpoint.memory_bytes()
        list(clients.map(rounds, range(CLIENTS, 2 * CLIENTS)))
    assert endpoint.memory_bytes() - before < MOST_KEPT_BYTES
