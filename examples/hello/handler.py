"""The smallest function on emberpool: one connection per environment, one transaction per invocation."""

from typing import Any

from psycopg import Connection

from emberpool import warm_connection


@warm_connection
def handler(event: dict[str, Any], context: object, connection: Connection) -> dict[str, Any]:  # noqa: ARG001 (Lambda's signature)
    """Return the server's version and how many connections the database has at this moment."""
    row = connection.execute(
        "select current_setting('server_version'), count(*) from pg_stat_activity where backend_type = 'client backend'"
    ).fetchone()
    version, connections = row or ("unknown", 0)
    return {"postgresql": version, "connections": connections}
