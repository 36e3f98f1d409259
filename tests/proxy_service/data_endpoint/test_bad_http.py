"""What is no request of an SDK's: one typed error or a closed connection, and the endpoint serves as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ..conftest import Proxy
from .raw_http import RawEndpoint, read_answers, statement
from .served import start_endpoint

ONE = statement("select 1")
CLOSED = "closed"  # without an answer, or with the server's own of a status and nothing else
SPARE_SESSIONS = 16  # that a test may add to the pool
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shared(make_shared_proxy: Callable[..., Proxy]) -> RawEndpoint:
    """An endpoint that has little patience with who is slow."""
    short = {"data_header_seconds": 3, "data_body_seconds": 2, "data_tls_mode": "disable"}
    return RawEndpoint(start_endpoint(make_shared_proxy, **short))


@pytest.fixture
def endpoint(shared: RawEndpoint) -> Iterator[RawEndpoint]:
    """The endpoint, which must serve as before when the test is over."""
    assert shared.rows("select 1") == [[1]]
    files = shared.open_files()
    yield shared
    shared.assert_serves_as_before(files + SPARE_SESSIONS)


def outcome(endpoint: RawEndpoint, sent: bytes) -> str:
    """Return the service's name of the one error that is the answer, or CLOSED."""
    answers = endpoint.answers(sent)
    if not answers:
        return CLOSED
    (answer,) = answers
    assert 400 <= answer.status < 500, answer
    assert answer.headers["content-length"] == str(len(answer.body))
    if not answer.body:
        assert answer.headers["connection"] == "close"
        return CLOSED
    assert answer.message
    return answer.error


def closing(endpoint: RawEndpoint, body: bytes = ONE, **given: object) -> bytes:
    """Return a signed request after whose answer the connection is to be closed."""
    return endpoint.request(body, **{"more": [("Connection", "close")], **given})  # type: ignore[arg-type]


BAD_BODIES = {
    "nothing": b"",
    "half an object": ONE[:-1],
    "two objects": ONE + ONE,
    "a list": b"[1]",
    "a number": b"1",
    "UTF-16": ONE.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + ONE,
    "broken UTF-8": ONE.replace(b"select 1", b"select \xff"),
    "half a surrogate pair": ONE.replace(b"select 1", b"select \\ud800"),
    "NUL in the SQL": statement("select '\0'"),
    "NUL in a value": statement("select :a", parameters=[{"name": "a", "value": {"stringValue": "\0"}}]),
    "NaN": ONE[:-1] + b', "includeResultMetadata": NaN}',
    "an unknown member": statement("select 1", extra=1),
    "a wrong type": statement("select 1", parameters={}),
    "a list a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "an array 400 deep": statement("select :a", parameters=[{"name": "a", "value": {"arrayValue": {}}}]).replace(
        b"{}", b'{"arrayValues":[' * 400 + b"{}" + b"]}" * 400
    ),
    "SQL of 64 KiB and one": statement("select 1" + " " * (64 * 1024 - 7)),
    "a request of 4 MiB and one": ONE + b" " * (4 * MIB + 1 - len(ONE)),
    "half a million members": b"{" + b",".join(b'"%d":0' % number for number in range(380_000)) + b"}",
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_bad_body_is_one_bad_request(endpoint: RawEndpoint, what: str) -> None:
    """A signed request whose body is wrong gets BadRequestException."""
    assert outcome(endpoint, closing(endpoint, BAD_BODIES[what])) in ("BadRequestException", CLOSED)


def test_largest_sql_and_largest_request_are_taken(endpoint: RawEndpoint) -> None:
    """Both limits are the last that is allowed, not the first that is not."""
    for body in (statement("select 1".ljust(64 * 1024)), ONE.ljust(4 * MIB)):
        (answer,) = endpoint.answers(closing(endpoint, body))
        assert answer.rows == [[1]]


def chunked(endpoint: RawEndpoint, chunks: bytes, encoding: str = "chunked") -> bytes:
    """Return a request signed for ONE with a body in chunks."""
    head = closing(endpoint, has_length=False, more=[("Connection", "close"), ("Transfer-Encoding", encoding)])
    return head[: -len(ONE)] + chunks


IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ONE), ONE)


def test_body_in_chunks_is_read(endpoint: RawEndpoint) -> None:
    """HTTP's other way to send a body, with trailers and in small pieces."""
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in ONE) + b"0\r\nx-trailer: 1\r\n\r\n"
    for chunks in (IN_CHUNKS, pieces):
        (answer,) = endpoint.answers(chunked(endpoint, chunks))
        assert answer.rows == [[1]]


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\n" + ONE,
        b"f" * 20 + b"\r\n" + ONE,
        b"5;" + b"a" * 100_000 + b"\r\nabcde\r\n0\r\n\r\n",
        IN_CHUNKS[:-5].replace(b"\r\n", b"\r\nX", 1),
    ],
)
def test_broken_chunks_never_run(endpoint: RawEndpoint, chunks: bytes) -> None:
    """A body of which only a part can be read is not what was signed."""
    assert outcome(endpoint, chunked(endpoint, chunks)) in ("AccessDeniedException", "BadRequestException", CLOSED)


def test_endless_chunks_end_at_the_limit(endpoint: RawEndpoint) -> None:
    """Nobody has said how long the body is, and it is still refused when it is too long."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert outcome(endpoint, chunked(endpoint, chunk * 80)) in ("BadRequestException", CLOSED)


def test_two_lengths_or_two_ways_are_no_second_request(endpoint: RawEndpoint) -> None:
    """What may be read in two ways is refused or closed: no request hides behind it (request smuggling)."""
    hidden = endpoint.request(statement("create table smuggled ()"))
    for more in (
        [("Content-Length", "3")],
        [("Content-Length", "-1")],
        [("Content-Length", "+5")],
        [("Content-Length", "0x5")],
        [("Content-Length", "9" * 30)],
        [("Transfer-Encoding", "xchunked")],
        [("Transfer-Encoding", "chunked, identity")],
        [("Transfer-Encoding", "\x0bchunked")],
        [("Transfer-Encoding ", "chunked")],
    ):
        assert outcome(endpoint, endpoint.request(ONE, more=more) + hidden) == CLOSED, more
    both = endpoint.request(ONE, more=[("Transfer-Encoding", "chunked")])
    assert outcome(endpoint, both + hidden) in ("AccessDeniedException", CLOSED)
    assert endpoint.rows("select count(*) from pg_class where relname = 'smuggled'") == [[0]]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW", "post"])
def test_other_methods_are_not_found(endpoint: RawEndpoint, method: str) -> None:
    """Only POST runs anything; a body that came with another method is no request of its own."""
    with endpoint.connection() as connection:
        connection.sendall(closing(endpoint, method=method))
        connection.settimeout(10)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 404 ")
    assert b"x-amzn-errortype: NotFoundException" in received
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"\r\n\r\n") == (method == "HEAD")


@pytest.mark.parametrize(
    "path", ["/", "/execute", "/Execute/", "//Execute", "/a/../Execute", "/Execute%00", "/" * 60_000]
)
def test_other_paths_are_not_found(endpoint: RawEndpoint, path: str) -> None:
    """No path but the operations' own leads to one, however it is written."""
    assert outcome(endpoint, closing(endpoint, path=path)) in ("NotFoundException", "AccessDeniedException")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r\n\r\n",
        b"POST /Exe",
        b"POST\r\n\r\n",
        b"POST /Execute HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /\xe9 HTTP/1.1\r\n\r\n",
        b"A" * 600_000,
    ],
)
def test_what_is_no_http_is_closed(endpoint: RawEndpoint, line: bytes) -> None:
    """Other protocols, halves and endless lines end without a word, or with the server's own."""
    answers = endpoint.answers(line, is_all=True)
    assert [answer.status for answer in answers] in ([], [400], [414], [431])


HEADERS = {
    "two hosts": ([("Host", "other")], "AccessDeniedException"),
    "two signatures": ([("Authorization", "AWS4-HMAC-SHA256 x")], "AccessDeniedException"),
    "an amz header that is not signed": ([("x-amz-target", "x")], "AccessDeniedException"),
    "two hundred": ([(f"x-{number}", "a") for number in range(200)], CLOSED),
    "a megabyte": ([("x-long", "a" * MIB)], CLOSED),
    "NUL in one": ([("x-nul", "a\0b")], CLOSED),
    "a name that is not ASCII": ([("x-\xe9", "a")], CLOSED),
    "a name with a space": ([("x y", "a")], CLOSED),
    "a folded line": ([("x-folded", "a\r\n b")], CLOSED),
}


@pytest.mark.parametrize("what", HEADERS)
def test_bad_headers_are_refused(endpoint: RawEndpoint, what: str) -> None:
    """Too many, too long, ambiguous or not ASCII."""
    headers, expected = HEADERS[what]
    assert outcome(endpoint, closing(endpoint, more=[*headers, ("Connection", "close")])) == expected


def test_header_that_nobody_reads_may_have_any_value(endpoint: RawEndpoint) -> None:
    """Bytes that are not ASCII harm only what they stand in: here an id that then is as good as none."""
    more = [("x-name", "\xe9\xff"), ("amz-sdk-request", "attempt=\xe9"), ("amz-sdk-invocation-id", "\xff")]
    (answer,) = endpoint.answers(closing(endpoint, more=[*more, ("Connection", "close")]))
    assert answer.rows == [[1]]


def test_http_1_0_gets_its_answer_and_the_end(endpoint: RawEndpoint) -> None:
    """The old protocol's clients know an answer's end by the connection's."""
    (answer,) = endpoint.answers(endpoint.request(ONE, version="1.0"))
    assert answer.rows == [[1]]


def test_pipelined_requests_are_answered_in_their_order(endpoint: RawEndpoint) -> None:
    """Also when the first takes longest, and one of them is wrong."""
    sqls = ["select 1, pg_sleep(0.2)::text", "select 2", "select wrong", "select 3"]
    sent = b"".join(endpoint.request(statement(sql)) for sql in sqls)
    first, second, wrong, third, end = endpoint.answers(sent + closing(endpoint, b""))
    assert [first.rows[0][0], second.rows, third.rows] == [1, [[2]], [[3]]]
    assert (wrong.error, end.error) == ("DatabaseErrorException", "BadRequestException")


def test_client_that_asks_before_it_sends_is_told_to_go_on_or_not(endpoint: RawEndpoint) -> None:
    """Expect: 100-continue, which curl sends with a large body: refused before it has sent it when it is too large."""
    for length, status in ((len(ONE), b"100"), (5 * MIB, b"400")):
        more = [("Expect", "100-continue"), ("Content-Length", str(length))]
        head = endpoint.request(ONE, has_length=False, more=more)[: -len(ONE)]
        with endpoint.connection() as connection, connection.makefile("rb") as incoming:
            connection.sendall(head)
            assert incoming.readline().split()[1] == status
            if status == b"100":
                assert incoming.readline() == b"\r\n"
                connection.sendall(ONE)
                assert next(read_answers(incoming)).rows == [[1]]
