"""No statement outlives its invocation: timeouts, the watchdog, and what is not sent any more."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from emberpool import (
    DeadlineTooClose,
    NoAnswer,
    warm_connection,
)
from emberpool.watchdog import Watchdog

from .conftest import Admin, Context, Environment, ledger, silent


def test_every_transaction_of_the_handler_has_the_timeout(environment: Environment, admin: Admin) -> None:
    """After a commit of its own, and in `transaction()` blocks, a handler's statements are still bounded."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> list[int]:
        found = []
        for _ in range(2):
            found.append(timeout_ms(connection))
            connection.commit()
        connection.autocommit = True
        with connection.transaction():
            found.append(timeout_ms(connection))
        with connection.pipeline():
            connection.autocommit = False
            found.append(timeout_ms(connection))
        return found

    assert all(1_000 < found <= 9_800 for found in handler({}, Context(remaining_ms=10_000)))


def timeout_ms(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select setting::int from pg_settings where name = 'statement_timeout'").fetchone()
    return row[0]


def running(admin: Admin, word: str) -> int:
    """Return how many statements with that word run in the database."""
    row = admin.execute(
        "select count(*) from pg_stat_activity where state = 'active' and query like %s and pid <> pg_backend_pid()",
        [f"%{word}%"],
    ).fetchone()
    assert row
    return row[0]


@pytest.mark.parametrize("transaction", [True, False])
def test_late_statement_is_cancelled_by_the_watchdog(environment: Environment, admin: Admin, transaction: bool) -> None:
    """A statement that comes late in its invocation, or outside of a transaction, still ends before the margin."""

    @warm_connection(transaction=transaction)
    def handler(event: int, context: object, connection: psycopg.Connection) -> None:
        connection.execute("set local statement_timeout = 0" if transaction else "select 1")
        connection.execute("select pg_sleep(%s) /* late */", [event])

    handler(0, Context())  # what opening takes is not within those 900 ms
    with pytest.raises(psycopg.errors.QueryCanceled):
        handler(30, Context(remaining_ms=900))
    assert running(admin, "late") == 0


def test_process_that_stalls_beyond_its_time_still_cancels(
    environment: Environment, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """An environment without a processor until all of its time is over hangs up on no server that would answer."""

    def stall(connection: psycopg.Connection[Any]) -> None:
        while connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
            time.sleep(0.001)
        ctypes.PyDLL(None).usleep(1_300_000)  # no other thread of the process runs meanwhile

    @warm_connection(transaction=False)
    def handler(event: int, context: object, connection: psycopg.Connection) -> None:
        if event:
            threading.Thread(target=stall, args=(connection,)).start()
        connection.execute("select pg_sleep(%s) /* stalled */", [event])

    handler(0, Context())
    with caplog.at_level("WARNING"), pytest.raises(psycopg.errors.QueryCanceled):
        handler(30, Context(remaining_ms=1_200))
    assert [json.loads(record.getMessage())["emberpool"] for record in caplog.records] == ["deadline_cancelled"]
    assert running(admin, "stalled") == 0


def test_statement_that_goes_on_after_its_cancel_is_said_once(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that does not heed its cancel costs one line and one count, not one for each attempt."""

    @warm_connection(deadline_margin_ms=1_000)
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        with silent(connection.info.backend_pid):
            connection.execute("select 1")

    with caplog.at_level("WARNING"), pytest.raises(NoAnswer):
        handler({}, Context(remaining_ms=2_000))
    events = [json.loads(record.getMessage())["emberpool"] for record in caplog.records]
    assert events == ["deadline_cancelled", "database_silent"]


def test_statement_after_the_deadline_is_not_sent(environment: Environment, admin: Admin) -> None:
    """When the margin has begun, another statement raises DeadlineTooClose instead of being cut in half."""

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values ('first')")
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            pass
        connection.execute("insert into ledger values ('too late')")

    with pytest.raises(DeadlineTooClose, match="was not sent"):
        handler({}, Context(remaining_ms=500))
    assert ledger(admin) == []


def test_watchdog_never_cancels_the_next_invocation(environment: Environment, admin: Admin) -> None:
    """After an invocation that came near its deadline, the next one's statements run undisturbed."""

    @warm_connection
    def handler(event: float, context: object, connection: psycopg.Connection) -> float:
        connection.execute("select pg_sleep(%s)", [event])
        return event

    handler(0, Context())  # what opening takes is not within those 290 ms
    for _ in range(5):
        with suppress(DeadlineTooClose, NoAnswer, psycopg.errors.QueryCanceled):  # on a busy machine it comes too near
            handler(0.05, Context(remaining_ms=290))
        assert handler(0.15, Context(remaining_ms=30_000)) == 0.15


def test_watchdog_looks_again_for_a_statement_that_began_after_its_first_look() -> None:
    """A statement that starts between the watchdog's look and the margin is still found, until it is disarmed."""
    watchdog, looks, enough = Watchdog(), [], threading.Event()

    def look() -> None:
        looks.append(time.time())
        if len(looks) == 3:
            enough.set()

    watchdog.arm(time.time() + 0.05, look)
    assert enough.wait(10)
    watchdog.disarm()
    seen = len(looks)
    time.sleep(0.1)
    assert len(looks) == seen
