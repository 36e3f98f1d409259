"""How often an invocation waits for the server, counted in libpq's own protocol trace."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from emberpool import declared, warm_connection
from emberpool import settings as names
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import DATABASE, PASSWORD, ROLE, Context

Environment = Callable[..., None]


def round_trips(connection: psycopg.Connection[Any], run: Callable[[], object]) -> int:
    """Count the turns from what we send (F) to what the server answers (B) while `run` runs."""
    with tempfile.TemporaryFile("w+") as trace:
        connection.pgconn.trace(trace.fileno())
        connection.pgconn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
        run()
        connection.pgconn.untrace()
        trace.seek(0)
        directions = [line.split("\t")[0] for line in trace if line[:2] in ("F\t", "B\t")]
    return sum(before == "F" and after == "B" for before, after in itertools.pairwise(directions))


def warm_handler(**options: Any) -> Callable[..., Any]:
    @warm_connection(**options)
    def handler(event: str, context: object, connection: psycopg.Connection[Any]) -> Any:
        return connection.execute(event).fetchone()

    return handler


def traced(handler: Callable[..., Any], statement: str = "select 1") -> int:
    handler(statement, Context())  # opens the connection
    warm = declared.shared_connection(names.LayerSettings.from_environment())
    return round_trips(warm._connection, lambda: handler(statement, Context()))


def test_invocation_needs_no_more_round_trips_than_raw_psycopg(
    environment: Environment, database: EmbeddedPostgres
) -> None:
    """BEGIN with the timeout, the statement, COMMIT: three, as raw psycopg in its default mode, checks included."""
    with psycopg.connect(database.conninfo(user=ROLE, password=PASSWORD, database=DATABASE)) as raw:

        def invocation() -> None:
            raw.execute("select 1").fetchone()
            raw.commit()

        invocation()
        assert round_trips(raw, invocation) == 3
    assert traced(warm_handler()) == 3


def test_pipelined_begin_saves_a_round_trip(environment: Environment) -> None:
    """With EMBERPOOL_PIPELINE_BEGIN the BEGIN and the timeout ride with the first statement: two."""
    environment(EMBERPOOL_PIPELINE_BEGIN="on")
    assert traced(warm_handler()) == 2
    # Two statements in one text cannot be pipelined: they still work, for one round trip more.
    assert traced(warm_handler(), "select 1; select 2") == 3


def test_autocommit_handler_needs_one_round_trip(environment: Environment) -> None:
    """transaction=False costs what its statement costs."""
    assert traced(warm_handler(transaction=False)) == 1


def test_handler_without_a_statement_needs_none_when_pipelined(environment: Environment) -> None:
    """A handler that does not touch its connection does not make the pool work for it."""
    environment(EMBERPOOL_PIPELINE_BEGIN="on")

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection[Any]) -> None: ...

    handler({}, Context())
    warm = declared.shared_connection(names.LayerSettings.from_environment())
    assert round_trips(warm._connection, lambda: handler({}, Context())) == 0


def test_pipelined_begin_keeps_the_promises(environment: Environment, admin: psycopg.Connection[Any]) -> None:
    """Timeout, commit, rollback and errors are the same when BEGIN rides along."""
    environment(EMBERPOOL_PIPELINE_BEGIN="on")

    @warm_connection
    def handler(event: str, context: object, connection: psycopg.Connection[Any]) -> Any:
        connection.execute("insert into ledger values (%s)", [event])
        if event == "bad":
            raise ValueError(event)
        return connection.execute("show statement_timeout").fetchone()[0]

    @warm_connection
    def failing(event: str, context: object, connection: psycopg.Connection[Any]) -> None:
        connection.execute(event)

    for _ in range(2):
        admin.execute("truncate ledger")
        assert handler("good", Context(remaining_ms=5_200)).endswith("ms")
        with pytest.raises(ValueError, match="bad"):
            handler("bad", Context())
        with pytest.raises(psycopg.errors.UndefinedTable):
            failing("select * from nowhere", Context())
        with pytest.raises(psycopg.errors.QueryCanceled):
            failing("select pg_sleep(20)", Context(remaining_ms=500))
        assert [row[0] for row in admin.execute("select id from ledger")] == ["good"]


def test_rested_connection_begins_by_itself(environment: Environment, admin: psycopg.Connection[Any]) -> None:
    """After a long freeze BEGIN is a step of its own again: what is lost there is replaced."""
    environment(EMBERPOOL_PIPELINE_BEGIN="on")
    handler = warm_handler()
    handler("select 1", Context())
    warm = declared.shared_connection(names.LayerSettings.from_environment())
    warm._last_used -= 3600
    connection = warm._connection
    # The check, BEGIN, the statement, COMMIT.
    assert round_trips(connection, lambda: handler("select 1", Context())) == 4
