"""Place an order over a warm connection: what you would deploy."""

from typing import Any

from orders import PlacedOrder, place_order
from psycopg import Connection

from emberpool import warm_connection


@warm_connection
def handler(event: dict[str, Any], context: object, connection: Connection) -> PlacedOrder:  # noqa: ARG001 (Lambda's signature)
    """Place the order that the event holds."""
    return place_order(connection, event)
