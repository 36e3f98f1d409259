"""docs/fleet.md, which others copy from, says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.slot_locks import CONTROL_NAME, VALUE_BITS, Mark, SlotLocks, mark_key, terms_value
from emberpool_proxy.metrics import BY_NAME, CLOUDWATCH_METRICS
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.fleet_view import COLUMNS

from .observed import some_settings

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()


def test_documented_lock_keys_are_those_of_the_code() -> None:
    """Keys of the default budget's name and the kinds of marks are the ones that the page tells."""
    locks = SlotLocks.of(ProxySettings.budget_name)
    assert f"keys are {locks.slots} and {locks.marks}" in " ".join(PAGE.split())
    assert f"kind x 2^{VALUE_BITS} + value" in PAGE
    for mark in Mark:
        assert re.search(rf"\b{mark.value} {mark.name}\b", PAGE), mark


def test_documented_query_shows_who_holds_what(postgres: EmbeddedPostgres) -> None:
    """The page's SQL names each control connection with its slots, floor and what it lacks."""
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    locks = SlotLocks.of(ProxySettings.budget_name)
    given = [("a", range(3), 2, 7), ("b", range(3, 4), 5, 0)]
    with psycopg.connect(postgres.conninfo(), autocommit=True) as reader:
        sessions = []
        for task, slots, floor, missing in given:
            name = f"{CONTROL_NAME} {task}"
            session = psycopg.connect(postgres.conninfo(), autocommit=True, application_name=name)
            sessions.append(session)
            assert len(session.execute(locks.take(list(slots), len(slots))).fetchall()) == len(slots)
            terms = terms_value(some_settings(max_server_connections=900, most_tasks_alive=9, floor_connections=floor))
            marks = [mark_key(Mark.TERMS, terms), *([mark_key(Mark.MISSING, missing)] if missing else [])]
            session.execute(locks.publish(marks, ()))
        try:
            rows = [row[1:] for row in reader.execute(query.encode()).fetchall()]
        finally:
            for session in sessions:
                session.close()
    assert rows == [(f"{CONTROL_NAME} {task}", len(slots), floor, missing) for task, slots, floor, missing in given]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"emberpool_(?:budget|max)_[a-z]\w+", PAGE))))
def test_documented_metrics_exist(name: str) -> None:
    """Each metric that an alarm is advised on is in the table of metrics."""
    assert name in BY_NAME


def test_every_metric_of_the_budget_in_cloudwatch_is_documented() -> None:
    """The page has a row with the statistic for each of them."""
    for metric in CLOUDWATCH_METRICS:
        if metric.name.startswith("Budget"):
            assert f"| `{metric.name}` ({metric.statistic}) | `{metric.of[0]}` |" in PAGE


def test_documented_columns_are_those_of_the_table() -> None:
    """The picture of the table in the page has the columns that the command prints."""
    assert [*COLUMNS, "share"] in [line.split() for line in PAGE.splitlines()]
