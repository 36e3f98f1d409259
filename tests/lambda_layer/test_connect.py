"""emberpool.connect(): a connection outside of any handler, against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import emberpool
from emberpool import ConnectionUnavailable, SettingsInvalid, TransactionAborted
from emberpool import settings as names

Environment = Callable[..., None]
Admin = psycopg.Connection[Any]


def ledger(admin: Admin) -> list[str]:
    return [row[0] for row in admin.execute("select id from ledger order by id")]


def test_block_is_one_transaction_and_closes_at_its_end(environment: Environment, admin: Admin) -> None:
    """What the block did is committed together at its end, and the connection is closed."""
    with emberpool.connect() as connection:
        connection.execute("insert into ledger values ('a')")
        assert ledger(admin) == []
    assert connection.closed
    assert ledger(admin) == ["a"]


def test_exception_rolls_back_and_closes(environment: Environment, admin: Admin) -> None:
    """When the block raises, nothing is kept and the exception reaches the caller."""
    with pytest.raises(ZeroDivisionError), emberpool.connect() as connection:  # noqa: PT012 (the block is the test)
        connection.execute("insert into ledger values ('undone')")
        raise ZeroDivisionError
    assert connection.closed
    assert ledger(admin) == []


def test_swallowed_failure_is_not_taken_for_a_commit(environment: Environment, admin: Admin) -> None:
    """A block that goes on after a failed statement gets TransactionAborted: its work is not silently lost."""
    with pytest.raises(TransactionAborted), emberpool.connect() as connection:  # noqa: PT012 (the block is the test)
        connection.execute("insert into ledger values ('undone')")
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("select * from nowhere")
    assert ledger(admin) == []


def test_each_block_has_a_connection_of_its_own(environment: Environment, backend_pid: Callable[..., int]) -> None:
    """Blocks may be nested, and none takes the handlers' warm connection."""
    with emberpool.connect() as outer, emberpool.connect() as inner:
        pids = {outer.info.backend_pid, inner.info.backend_pid, backend_pid({}, None)}
    assert len(pids) == 3


def test_named_database_is_used(environment: Environment) -> None:
    """connect("replica") uses EMBERPOOL_REPLICA_*; an unknown name is refused with the variable that it needs."""
    environment(EMBERPOOL_REPLICA_HOST="127.0.0.1", EMBERPOOL_REPLICA_DATABASE="postgres")
    with emberpool.connect("replica") as connection:
        assert connection.info.dbname == "postgres"
    with pytest.raises(SettingsInvalid, match="EMBERPOOL_MISSING_HOST"), emberpool.connect("missing"):
        pass


def test_unreachable_database_is_unavailable(environment: Environment) -> None:
    """Nothing of the block runs when no connection can be opened."""
    environment(**{names.PORT: "1", names.CONNECT_RETRY_SECONDS: "0"})
    with pytest.raises(ConnectionUnavailable), emberpool.connect():
        pytest.fail("ran without a connection")
