"""What a shop does when somebody orders: business code that takes any open connection."""

import time
import uuid
from typing import Any, TypedDict

from psycopg import Connection

PAYMENT_SECONDS = 0.5  # what a payment provider takes to answer


class PlacedOrder(TypedDict):
    """What the caller gets back."""

    order_id: int
    total_cents: int
    payment_id: str


class OrderRefused(Exception):  # noqa: N818 (named by what happened to the order)
    """The product is unknown, or fewer are in stock than were ordered: nothing was written."""


def place_order(connection: Connection, event: dict[str, Any]) -> PlacedOrder:
    """Reserve the goods, take the payment and note it.

    Raises OrderRefused when the product does not exist or is sold out.
    """
    order_id, total_cents = _reserve(connection, event)
    # No transaction is open while the payment provider thinks: no lock, and behind a pool no server connection.
    connection.commit()
    payment_id = _charge(event["customer_email"], total_cents)
    connection.execute("update orders set payment_id = %s where id = %s", (payment_id, order_id))
    return {"order_id": order_id, "total_cents": total_cents, "payment_id": payment_id}


def _reserve(connection: Connection, event: dict[str, Any]) -> tuple[int, int]:
    product_id, quantity = int(event["product_id"]), int(event["quantity"])
    product = connection.execute("select price_cents from products where id = %s", (product_id,)).fetchone()
    if product is None:
        raise OrderRefused(f"there is no product {product_id}")
    total_cents = product[0] * quantity
    order = connection.execute(
        "insert into orders (customer_email, product_id, quantity, total_cents) values (%s, %s, %s, %s) returning id",
        (event["customer_email"], product_id, quantity, total_cents),
    ).fetchone()
    # Last, as the row stays locked until the commit and others may want the same product.
    taken = connection.execute(
        "update products set in_stock = in_stock - %s where id = %s and in_stock >= %s",
        (quantity, product_id, quantity),
    )
    if order is None or taken.rowcount == 0:
        raise OrderRefused(f"fewer than {quantity} of product {product_id} are in stock")
    return order[0], total_cents


def _charge(customer_email: str, total_cents: int) -> str:  # noqa: ARG001 (what a payment provider would ask for)
    """Stand for the call of a payment provider: it takes its time and answers with a reference."""
    time.sleep(PAYMENT_SECONDS)
    return f"payment-{uuid.uuid4()}"
