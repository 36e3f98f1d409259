"""The function that the tests of the whole path deploy: it answers with what it saw."""

from __future__ import annotations

import os
from typing import Any

import psycopg

from emberpool import warm_connection


@warm_connection
def handler(event: dict[str, Any], context: object, connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Insert the event's id if it has one, then sleep in the database for as long as it says."""
    if "id" in event:
        connection.execute("insert into ledger values (%s)", [event["id"]])
    row = connection.execute(
        "select pg_backend_pid(), current_user from pg_sleep(%s)", [event.get("sleep", 0)]
    ).fetchone()
    if event.get("raise"):
        raise RuntimeError(event["raise"])
    return {"backend_pid": row[0], "user": row[1], "pid": os.getpid(), "tls": connection.pgconn.ssl_in_use}


@warm_connection
def second_handler(event: dict[str, Any], context: object, connection: psycopg.Connection[Any]) -> int:
    """Another handler of the same module."""
    return connection.execute("select 2").fetchone()[0]
