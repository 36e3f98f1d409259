"""Statements that leave something behind in the session are named in a warning, others are not."""

from __future__ import annotations

import json
import logging

import psycopg
import pytest

from emberpool import (
    telemetry,
    warm_connection,
)
from emberpool.session_state import hazard_of

from .conftest import Context, Environment


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("set search_path = public", "SET"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
        ("select set_config('search_path', 'public', false)", "set_config"),
        ("listen orders", "LISTEN"),
        ("prepare q as select 1", "PREPARE"),
        ("select pg_advisory_lock(1)", "session advisory lock"),
        ("declare c cursor with hold for select 1", "WITH HOLD"),
        ("create temp table t (i int)", "temporary table"),
    ],
)
def test_session_state_is_warned_of_once(
    environment: Environment, caplog: pytest.LogCaptureFixture, statement: str, kind: str
) -> None:
    """A statement that leaves something behind in the session is named in one warning per environment."""
    telemetry._recorder._warned.clear()

    @warm_connection
    def handler(event: object, context: object, connection: psycopg.Connection) -> None:
        connection.execute(statement)
        connection.rollback()
        connection.execute("deallocate all")  # what PREPARE left behind is not rolled back

    with caplog.at_level(logging.WARNING):
        handler({}, Context())
        handler({}, Context())
    warnings = [record.getMessage() for record in caplog.records if "transaction pooling" in record.getMessage()]
    assert len(warnings) == 1
    assert kind in json.dumps(warnings)


@pytest.mark.parametrize(
    "statement",
    [
        "set local search_path = public",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "set timezone = 'UTC'",
        "set application_name = 'mine'",
        "select pg_advisory_xact_lock(1)",
        "create temp table t (i int) on commit drop",
        "select 'set search_path'",
        "update settings set value = 1 where false",
    ],
)
def test_safe_statements_are_not_warned_of(statement: str) -> None:
    """What ends with the transaction, or what the pool keeps in step, is not a hazard."""
    assert hazard_of(statement) is None
