"""One message to the server and the wait for its answer, below psycopg's cursors: BEGIN, COMMIT, the liveness check.

psycopg's own way there is made for any statement, and would cost as much as the rest of a warm invocation.
"""

from __future__ import annotations

import math
import select
import time
from typing import Protocol

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

# How soon a connection that another thread closes meanwhile is noticed; its socket does not wake the one who waits.
LOOK_AGAIN_MS = 100
COMMAND_OK = ExecStatus.COMMAND_OK  # looked up once, as all of this module stands on the warm path


class Polled(Protocol):
    """A connection with a poller of its own, made once."""

    pgconn: PGconn
    poller: select.poll


def failure_of(
    connection: Polled, commands: bytes, until: float = math.inf, first_wait_ms: int = LOOK_AGAIN_MS
) -> PGresult | None:
    """Run commands that return no rows, in one round trip; return the result of the one that failed, None if none did.

    until: in seconds of the wall clock. first_wait_ms: no longer than until then; it spares a look at the clock.
    Raises TimeoutError when the answer is not there by then, and OperationalError when the connection is lost; in both
    cases it cannot be used any more.
    """
    pgconn, failure, wait_ms = connection.pgconn, None, float(first_wait_ms)
    pgconn.send_query(commands)
    try:
        while True:
            if connection.poller.poll(wait_ms):
                pgconn.consume_input()
            elif time.time() >= until:
                raise TimeoutError
            else:
                pgconn.flush()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return failure
                if result.status != COMMAND_OK and failure is None:
                    failure = result
            wait_ms = min(max((until - time.time()) * 1000, 0), LOOK_AGAIN_MS)
    except psycopg.OperationalError:
        # A server that ends the connection says why first.
        if failure is None:
            raise
        return failure


def answers(connection: Polled, seconds: float) -> bool:
    """Send an empty query and say whether the server answers it within `seconds`."""
    pgconn = connection.pgconn
    until = time.monotonic() + seconds
    try:
        pgconn.send_query(b"")
        pgconn.flush()
        while True:
            while not pgconn.is_busy():
                if pgconn.get_result() is None:
                    return pgconn.status == ConnStatus.OK
            left_ms = int((until - time.monotonic()) * 1000)
            if left_ms <= 0 or not connection.poller.poll(left_ms):
                return False
            pgconn.consume_input()
    except psycopg.OperationalError:
        return False
