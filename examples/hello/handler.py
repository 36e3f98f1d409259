"""The smallest function on emberpool: one connection per environment, one transaction per invocation."""

import json
from typing import Any

from psycopg import Connection

from emberpool import warm_connection


@warm_connection
def handler(event: Any, context: object, connection: Connection) -> dict[str, Any]:  # noqa: ARG001 (Lambda's signature)
    """Return the server's version and how many connections the database has at this moment."""
    row = connection.execute(
        "select current_setting('server_version'), count(*) from pg_stat_activity where backend_type = 'client backend'"
    ).fetchone()
    version, connections = row or ("unknown", 0)
    answer = {"postgresql": version, "connections": connections}
    return as_http(answer) if is_from_url(event) else answer


def is_from_url(event: Any) -> bool:
    """Whether the event came by the function's URL; a plain invocation's may be any JSON."""
    return isinstance(event, dict) and "http" in event.get("requestContext", {})


def as_http(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what a function URL makes its HTTP response of: the body is text, and nobody may keep it."""
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return {"statusCode": 200, "headers": headers, "body": json.dumps(answer)}
