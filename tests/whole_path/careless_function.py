"""A function that fails in as many ways as its events say; its statements hold a literal that nobody may see."""

from __future__ import annotations

from typing import Any

import psycopg

from emberpool import warm_connection


def work(event: dict[str, Any], context: object, connection: psycopg.Connection[Any]) -> str:
    """Do what `event["do"]` says; each statement holds the event's literal."""
    do, literal = event["do"], event["literal"]
    if do == "fail":
        connection.execute(f"select 1/0, '{literal}'")
    if do == "session":
        connection.execute(f"set search_path = public, '{literal}'")
    if do == "lose":
        connection.execute(f"select '{literal}', pg_terminate_backend(pg_backend_pid())")
    if do == "late":
        connection.execute(f"select '{literal}' from pg_sleep(60)")
    if do == "swallow":
        try:
            connection.execute(f"select 1/0, '{literal}'")
        except psycopg.Error:
            return "swallowed"
    connection.execute(f"select '{literal}'")
    return "done"


handler = warm_connection(work)
idempotent_handler = warm_connection(idempotent=True)(work)
