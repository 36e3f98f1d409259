"""Place an order over a connection of its own: how it is mostly written, and what a burst breaks."""

import os
from typing import Any

import psycopg
from orders import PlacedOrder, place_order


def handler(event: dict[str, Any], context: object) -> PlacedOrder:  # noqa: ARG001 (Lambda's signature)
    """Place the order that the event holds."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        return place_order(connection, event)
