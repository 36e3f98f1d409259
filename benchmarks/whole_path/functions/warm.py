"""The layer's warm connection: straight to the database or through the proxy, as its variables say."""

from __future__ import annotations

from typing import Any

from benchmarks.whole_path.functions.work import visit
from psycopg import Connection

from emberpool import warm_connection


@warm_connection
def handler(event: dict[str, int], context: object, connection: Connection[Any]) -> str:
    del context
    return visit(connection, event["page"])
