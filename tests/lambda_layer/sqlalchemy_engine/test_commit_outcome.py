"""What SQLAlchemy's users learn of a commit whose connection was lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from emberpool import (
    CommitOutcomeUnknown,
    NotCommitted,
    warm_connection,
)
from emberpool.sqlalchemy import engine as engine_on

from ..conftest import Admin, Context, Environment, ledger
from .conftest import Entry, pid_of


@pytest.fixture
def resolving(environment: Environment) -> Iterator[sqlalchemy.Engine]:
    """An engine that asks the database what became of a lost commit."""
    made = engine_on(resolve_commit=True)
    yield made
    made.dispose()


def place(engine: sqlalchemy.Engine, id_: str) -> None:
    with Session(engine) as session, session.begin():
        session.add(Entry(id=id_))


@pytest.mark.usefixtures("die_at_commit")
def test_lost_commit_is_an_operational_error_of_unknown_outcome(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """SQLAlchemy's users catch its OperationalError; `orig` is the layer's, and the next transaction works."""
    with pytest.raises(OperationalError) as caught:
        place(engine, "aborts")
    assert isinstance(caught.value.orig, CommitOutcomeUnknown)
    assert caught.value.connection_invalidated
    place(engine, "lives")
    assert ledger(admin) == ["lives"]


@pytest.mark.usefixtures("cut_after_commit")
def test_lost_answer_to_a_commit_is_an_unknown_outcome(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """What was committed may look lost: nobody says that it was not."""
    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.execute(text("insert into ledger values ('kept')"))
    assert isinstance(caught.value.orig, CommitOutcomeUnknown)
    assert ledger(admin) == ["kept"]


@pytest.mark.usefixtures("die_at_commit")
def test_resolved_commit_that_was_aborted_says_not_committed(resolving: sqlalchemy.Engine, admin: Admin) -> None:
    """With resolve_commit=True the database is asked: nothing was committed, so it may be repeated."""
    with pytest.raises(OperationalError) as caught:
        place(resolving, "aborts")
    assert isinstance(caught.value.orig, NotCommitted)
    place(resolving, "lives")
    assert ledger(admin) == ["lives"]


@pytest.mark.usefixtures("cut_after_commit")
@pytest.mark.parametrize("is_in_handler", [False, True], ids=["outside", "in a handler"])
def test_resolved_commit_that_was_committed_is_a_success(
    resolving: sqlalchemy.Engine, admin: Admin, caplog: pytest.LogCaptureFixture, is_in_handler: bool
) -> None:
    """The block ends as if nothing had been, without a word of SQLAlchemy's pool, and the next one works."""

    @warm_connection(transaction=False)
    def handler(event: list[str], context: object) -> None:
        for id_ in event:
            place(resolving, id_)

    ids = ["first", "second"]
    if is_in_handler:
        handler(ids, Context())
    else:
        for id_ in ids:
            place(resolving, id_)
    assert ledger(admin) == ids
    assert not [record for record in caplog.records if record.name.startswith("sqlalchemy")]


@pytest.mark.usefixtures("cut_after_commit")
def test_connection_that_goes_on_after_a_resolved_commit_is_told_that_its_own_is_gone(
    resolving: sqlalchemy.Engine, admin: Admin
) -> None:
    """Another statement on the same Connection is an error of a lost connection, and nothing of it has run."""
    with resolving.connect() as connection:
        connection.execute(text("insert into ledger values ('kept')"))
        connection.commit()
        with pytest.raises(OperationalError) as caught:
            connection.execute(text("insert into ledger values ('not sent')"))
        assert caught.value.connection_invalidated
    assert pid_of(resolving)
    assert ledger(admin) == ["kept"]


def test_commit_after_the_connection_was_closed_is_an_error(engine: sqlalchemy.Engine, admin: Admin) -> None:
    """A Session that outlived its invocation is never told that its work was committed."""
    left: list[Session] = []

    @warm_connection(transaction=False)
    def handler(event: object, context: object) -> None:
        session = Session(engine)
        left.append(session)
        session.add(Entry(id="left"))
        session.flush()

    handler({}, Context())
    with pytest.raises(OperationalError):
        left[0].commit()
    assert ledger(admin) == []
