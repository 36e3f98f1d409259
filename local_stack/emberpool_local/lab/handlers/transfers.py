"""Moves money from one account to another, and writes down which transfer it was in the same transaction.

When an invocation fails it prints one line of JSON that says how far it was: whoever judges the run reads it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg

from emberpool import warm_connection
from emberpool_local.lab.handlers.steps import BEFORE_HANDLER, COMMIT, FIRST_STATEMENT, LATER_STATEMENT


class _Progress:
    """How far the invocation that runs is; an environment runs one at a time."""

    step = BEFORE_HANDLER
    handler_began: float | None = None


@warm_connection
def transfer(event: dict[str, Any], context: object, connection: psycopg.Connection[Any]) -> None:
    """Do the transfer; `sleep_seconds` is how long its transaction computes in the database."""
    del context
    _Progress.handler_began, _Progress.step = time.monotonic(), FIRST_STATEMENT
    number, source, target, amount = (event[name] for name in ("number", "source", "target", "amount"))
    connection.execute("insert into transfers values (%s, %s, %s, %s)", (number, source, target, amount))
    _Progress.step = LATER_STATEMENT
    # The comment tells the invocation to whoever looks into pg_stat_activity.
    connection.execute(f"select pg_sleep(%s) /* transfer {int(number)} */", (event["sleep_seconds"],), prepare=False)
    # In the order of the accounts: two transfers that cross do not lock each other out.
    for account, change in sorted(((source, -amount), (target, amount))):
        connection.execute("update accounts set balance = balance + %s where number = %s", (change, account))
    _Progress.step = COMMIT


def handler(event: dict[str, Any], context: object) -> int:
    """Run one transfer and answer with its number."""
    _Progress.step, _Progress.handler_began = BEFORE_HANDLER, None
    try:
        transfer(event, context)
    except Exception as error:
        report = {
            "step": _Progress.step,
            "handler_began": _Progress.handler_began,
            "failed_at": time.monotonic(),
            "sqlstate": getattr(error, "sqlstate", None),
            "is_connection_error": isinstance(error, psycopg.OperationalError | psycopg.InterfaceError),
        }
        print(json.dumps({"transfer": event["number"], **report}), flush=True)  # noqa: T201 (a function's log is its output)
        raise
    return int(event["number"])
