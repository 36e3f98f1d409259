"""What an invocation waits for while a connection is opened, each for no longer than the invocation lasts.

Owns the bounds that libpq and psycopg lack: their connect_timeout has a floor of two seconds, and neither the search
for a host's addresses nor the reading of a secret ends by itself in time.
"""

from __future__ import annotations

import math
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, PollingStatus
from psycopg.pq.abc import PGconn

ResultT = TypeVar("ResultT")

EVENTS = {PollingStatus.READING: select.POLLIN, PollingStatus.WRITING: select.POLLOUT}


def within(seconds: float, call: Callable[[], ResultT]) -> ResultT:
    """Return what `call` returns, or raise what it raises; with infinite `seconds` in this very thread.

    Raises TimeoutError when it takes longer. It then goes on in a thread that ends with it.
    """
    if seconds == math.inf:
        return call()
    results: list[ResultT] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            errors.append(error)

    thread = threading.Thread(target=run, name="emberpool-opening", daemon=True)
    thread.start()
    thread.join(max(seconds, 0))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def connected(host: str, port: int, seconds: float, **parameters: str | int | None) -> PGconn:
    """Return a connection to `host` that has logged in within `seconds`; `parameters` are libpq's.

    Raises psycopg.OperationalError, of the kind psycopg.errors.ConnectionTimeout when it took longer.
    """
    until = time.monotonic() + seconds
    addresses = _addresses(host, port, seconds)
    if addresses:
        # libpq tries them in turn, as it does with what it looks up itself, and holds the interpreter's lock meanwhile.
        parameters["hostaddr"] = ",".join(addresses)
    hosts = ",".join([host] * max(len(addresses), 1))
    pgconn = pq.PGconn.connect_start(make_conninfo("", host=hosts, port=port, **parameters).encode())
    try:
        _log_in(pgconn, until)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1  # what psycopg's connections are
    return pgconn


def _log_in(pgconn: PGconn, until: float) -> None:
    # As libpq documents it: until the first answer of connect_poll() it waits to write.
    status = PollingStatus.WRITING
    while pgconn.status != ConnStatus.BAD and status in EVENTS:
        # Made each time: libpq goes on to another socket when it tries the next address.
        poller = select.poll()
        poller.register(pgconn.socket, EVENTS[status])
        left_seconds = until - time.monotonic()
        if left_seconds <= 0 or not poller.poll(left_seconds * 1000):
            raise psycopg.errors.ConnectionTimeout("connection timeout expired")
        status = PollingStatus(pgconn.connect_poll())
    if pgconn.status != ConnStatus.OK:
        raise psycopg.OperationalError(f"connection failed: {pgconn.get_error_message()}")


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """Return the host's addresses, none for what libpq need not look up: a socket's folder, an address."""
    if host.startswith(("/", "@")) or _is_address(host):
        return []
    # As bytes: for a text Python would import its IDNA codec first, which takes milliseconds.
    name = host.encode("ascii") if host.isascii() else host
    try:
        found = within(seconds, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise psycopg.errors.ConnectionTimeout(f'no address of the host "{host}" was found in time') from None
        raise psycopg.OperationalError(
            f'could not translate host name "{host}" to address: {error.strerror or error}'
        ) from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
