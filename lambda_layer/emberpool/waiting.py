"""What an invocation waits for while a connection is opened, each for no longer than the invocation lasts.

Owns the bounds that libpq and psycopg lack: their connect_timeout has a floor of two seconds, and neither the search
for a host's addresses nor the reading of a secret ends by itself in time.
"""

from __future__ import annotations

import math
import random
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

EXPIRED = "connection timeout expired"
# The system's: environments that were restored from one snapshot share the state of Python's own.
_random = random.SystemRandom()
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


def connected(
    host: str, port: int, seconds: float, address_seconds: float = math.inf, **parameters: str | int | None
) -> PGconn:
    """Return a connection to `host` that has logged in within `seconds`; `parameters` are libpq's.

    Of several addresses one that does not accept the connection within `address_seconds`, or refuses it, is passed
    over. Once an address has accepted, a login may take all that is left: it waits in line there.
    Raises psycopg.OperationalError, of the kind psycopg.errors.ConnectionTimeout when it took longer.
    """
    until = time.monotonic() + seconds
    addresses = _spread(_addresses(host, port, seconds)) or [None]
    failures: list[str] = []
    for tried, address in enumerate(addresses, 1):
        reached_until = until
        if tried < len(addresses):
            now = time.monotonic()
            # A share at most: however little time there is, each address gets some of it.
            reached_until = now + min(address_seconds, (until - now) / (len(addresses) - tried + 1))
        try:
            return _opened(
                make_conninfo("", host=host, hostaddr=address, port=port, **parameters), until, reached_until
            )
        except _NotReached as failure:
            failures.append(str(failure))
    raise _failure(failures, has_time=time.monotonic() < until)


class _NotReached(Exception):  # noqa: N818 (named by what happened; it never leaves this module)
    """The address did not accept the connection: the next one may."""


def _opened(conninfo: str, until: float, reached_until: float) -> PGconn:
    # Between the steps it waits without the interpreter's lock, which libpq's own wait would keep.
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        _log_in(pgconn, until, reached_until)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1  # what psycopg's connections are
    return pgconn


def _log_in(pgconn: PGconn, until: float, reached_until: float) -> None:
    # As libpq documents it: until the first answer of connect_poll() it waits to write.
    status, is_reached = PollingStatus.WRITING, False
    while pgconn.status != ConnStatus.BAD and status in EVENTS:
        # Made each time: libpq may go on with another socket.
        poller = select.poll()
        poller.register(pgconn.socket, EVENTS[status])
        left_seconds = (until if is_reached else reached_until) - time.monotonic()
        if left_seconds <= 0 or not poller.poll(left_seconds * 1000):
            if is_reached:
                raise psycopg.errors.ConnectionTimeout(EXPIRED)
            raise _NotReached(f"{EXPIRED}: {pgconn.hostaddr.decode()} accepts no connection")
        status = PollingStatus(pgconn.connect_poll())
        is_reached = is_reached or pgconn.status not in (ConnStatus.STARTED, ConnStatus.BAD)
    if pgconn.status != ConnStatus.OK:
        message = f"connection failed: {pgconn.get_error_message()}"
        raise psycopg.OperationalError(message) if is_reached else _NotReached(message)


def _failure(failures: list[str], *, has_time: bool) -> psycopg.OperationalError:
    message = "\n".join(failures)
    return psycopg.OperationalError(message) if has_time else psycopg.errors.ConnectionTimeout(message)


def _spread(addresses: list[str]) -> list[str | None]:
    """Return the addresses in random order, those of the kind that the system prefers, IPv6 or IPv4, first.

    As libpq's load_balance_hosts=random does: the resolver's order is the same for all who start together.
    """
    if len(addresses) < 2:  # noqa: PLR2004 (nothing to mix)
        return [*addresses]
    is_first_ipv6 = ":" in addresses[0]
    mixed = _random.sample(addresses, len(addresses))
    mixed.sort(key=lambda address: (":" in address) != is_first_ipv6)
    return [*mixed]


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
