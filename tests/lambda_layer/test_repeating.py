"""What is run once more after a loss, and what is known of a commit that was lost."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import IsolationLevel

from emberpool import (
    CommitOutcomeUnknown,
    NotCommitted,
    warm_connection,
)

from .conftest import Admin, Context, Environment, ledger, terminate


def test_idempotent_handler_runs_once_more_after_a_lost_connection(environment: Environment, admin: Admin) -> None:
    """idempotent=True repeats the whole handler once; its first attempt left nothing."""
    attempts = []

    @warm_connection(idempotent=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("insert into ledger values (%s)", [event])
        if len(attempts) == 1:
            terminate(admin, connection.info.backend_pid)
            connection.execute("select 1")

    handler("a", Context())
    assert attempts == ["a", "a"]
    assert ledger(admin) == ["a"]


def test_idempotent_handler_is_repeated_at_most_once(environment: Environment, admin: Admin) -> None:
    """A loss in the second attempt reaches the caller."""
    attempts = []

    @warm_connection(idempotent=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        terminate(admin, connection.info.backend_pid)
        connection.execute("select 1")

    with pytest.raises(psycopg.OperationalError):
        handler("a", Context())
    assert attempts == ["a", "a"]


def test_other_errors_are_never_repeated(environment: Environment, admin: Admin) -> None:
    """An idempotent handler that fails by itself is not run again, and nor is any handler that is not idempotent."""
    attempts = []

    @warm_connection(idempotent=True)
    def wrong(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("select 1/0")

    @warm_connection
    def lost(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        terminate(admin, connection.info.backend_pid)
        connection.execute("select 1")

    with pytest.raises(psycopg.errors.DivisionByZero):
        wrong("wrong", Context())
    with pytest.raises(psycopg.OperationalError):
        lost("lost", Context())
    assert attempts == ["wrong", "lost"]


def test_serialization_failure_of_an_idempotent_handler_is_repeated(environment: Environment, admin: Admin) -> None:
    """Two serializable transactions that conflict: the one that loses runs once more and succeeds."""
    admin.execute("insert into ledger values ('seed')")
    attempts = []

    @warm_connection(idempotent=True, isolation_level=IsolationLevel.REPEATABLE_READ)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        attempts.append(event)
        connection.execute("select count(*) from ledger")
        if len(attempts) == 1:
            admin.execute("update ledger set id = 'changed' where id = 'seed'")
        connection.execute("update ledger set id = %s", [event])

    handler("won", Context())
    assert len(attempts) == 2
    assert ledger(admin) == ["won"]


# --- the outcome of a commit


def test_resolved_commit_that_was_aborted_says_not_committed(
    environment: Environment, admin: Admin, die_at_commit: None
) -> None:
    """resolve_commit=True asks the database: nothing was committed, so the invocation may be repeated."""

    @warm_connection(resolve_commit=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])

    with pytest.raises(NotCommitted):
        handler("aborts", Context())
    handler("lives", Context())
    assert ledger(admin) == ["lives"]


def test_resolved_commit_that_was_committed_is_a_success(
    environment: Environment, admin: Admin, cut_after_commit: None
) -> None:
    """When the answer to COMMIT is lost but it was committed, resolve_commit=True returns as if nothing had been."""

    @warm_connection(resolve_commit=True)
    def handler(event: str, context: object, connection: psycopg.Connection) -> str:
        connection.execute("insert into ledger values (%s)", [event])
        return event

    assert handler("a", Context()) == "a"
    assert ledger(admin) == ["a"]


def test_unresolved_commit_stays_unknown(environment: Environment, admin: Admin, cut_after_commit: None) -> None:
    """Without the option the same loss is an unknown outcome, though it was committed."""

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection) -> None:
        connection.execute("insert into ledger values (%s)", [event])

    with pytest.raises(CommitOutcomeUnknown):
        handler("a", Context())
    assert ledger(admin) == ["a"]
