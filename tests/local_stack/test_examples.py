"""The examples are what a user would deploy: they run over a fleet, do the same work, and need only the layer."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from emberpool import settings as layer
from emberpool_local.burst.demo import PRODUCTS, example_folder, order_events
from emberpool_local.burst.target import run_sql_file
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.postgres.server import EmbeddedPostgres

ORDERS = example_folder("orders")
HELLO = example_folder("hello")
IN_THE_LAYER = {"emberpool", "psycopg"}


@dataclass(frozen=True)
class Shop:
    """A database of its own with the schema of the example."""

    conninfo: str
    variables: dict[str, str]

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.conninfo) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture(scope="module")
def shop(postgres: EmbeddedPostgres) -> Shop:
    postgres.create_role_and_database("shopkeeper", "secret", "shop")
    conninfo = postgres.conninfo("shopkeeper", "secret", "shop")
    run_sql_file(conninfo, ORDERS / "schema.sql")
    return Shop(
        conninfo,
        {
            "DATABASE_URL": conninfo,
            layer.HOST: postgres.host,
            layer.PORT: str(postgres.port),
            layer.DATABASE: "shop",
            layer.USER: "shopkeeper",
            layer.PASSWORD: "secret",
            layer.SSLMODE: "disable",
        },
    )


async def invoke(shop: Shop, handler: str, event: object, folder: Path = ORDERS) -> Outcome:
    async with Fleet(handler, folder, shop.variables) as fleet:
        return await fleet.invoke(json.dumps(event).encode())


async def test_both_handlers_do_the_same_work(shop: Shop) -> None:
    """An order leaves the same rows, the same stock and the same answer, whoever brought the connection."""
    event = json.loads((ORDERS / "event.json").read_text())
    left: list[object] = []
    for handler in ("naive_handler:handler", "handler:handler"):
        run_sql_file(shop.conninfo, ORDERS / "schema.sql")
        outcome = await invoke(shop, handler, event)
        assert outcome.status == "succeeded", outcome.error_message
        answer = json.loads(outcome.payload)
        (order,) = shop.rows(
            "select customer_email, product_id, quantity, total_cents, payment_id is not null"
            f" from orders where id = {int(answer['order_id'])}"
        )
        stock = shop.rows(f"select in_stock from products where id = {int(event['product_id'])}")
        left.append((order, stock, answer["total_cents"], sorted(answer)))
    assert left[0] == left[1]
    assert left[0][0] == ("ada@example.com", 17, 2, 370, True)  # type: ignore[index]


@pytest.mark.parametrize("handler", ["naive_handler:handler", "handler:handler"])
@pytest.mark.parametrize("order", [{"product_id": 0, "quantity": 1}, {"product_id": 5, "quantity": 2_000_000}])
async def test_refused_order_leaves_nothing(shop: Shop, handler: str, order: dict[str, int]) -> None:
    """An unknown product and a sold out one are errors, and the order is not in the database."""
    before = shop.rows("select count(*), (select sum(in_stock) from products) from orders")
    outcome = await invoke(shop, handler, {"customer_email": "ada@example.com", **order})
    assert (outcome.status, outcome.error_type) == ("failed", "OrderRefused")
    assert shop.rows("select count(*), (select sum(in_stock) from products) from orders") == before


async def test_no_transaction_waits_for_the_payment(shop: Shop) -> None:
    """The order is committed while the payment provider is asked: a pool can lend the connection to others."""
    event = json.loads((ORDERS / "event.json").read_text())
    event["customer_email"] = "grace@example.com"
    async with Fleet("handler:handler", ORDERS, shop.variables) as fleet:
        invocation = asyncio.ensure_future(fleet.invoke(json.dumps(event).encode()))
        waiting: list[tuple[object, ...]] = []
        while not waiting and not invocation.done():
            await asyncio.sleep(0.01)
            waiting = shop.rows("select id from orders where customer_email like 'grace%' and payment_id is null")
        outcome = await invocation
    assert waiting == [(json.loads(outcome.payload)["order_id"],)]


async def test_schema_can_be_run_again(shop: Shop) -> None:
    """Orders stay, the stock is full again."""
    event = json.loads((ORDERS / "event.json").read_text())
    await invoke(shop, "handler:handler", event)
    orders = shop.rows("select count(*) from orders")
    run_sql_file(shop.conninfo, ORDERS / "schema.sql")
    assert shop.rows("select count(*) from orders") == orders
    assert shop.rows("select count(*), min(in_stock) from products") == [(PRODUCTS, 1_000_000)]


async def test_hello_answers(shop: Shop) -> None:
    """The smallest example says what it found."""
    outcome = await invoke(shop, "handler:handler", {}, HELLO)
    assert outcome.status == "succeeded", outcome.error_message
    answer = json.loads(outcome.payload)
    assert answer["connections"] >= 1
    assert answer["postgresql"][0].isdigit()


async def test_hello_answers_its_url(shop: Shop) -> None:
    """A function URL's event gets an HTTP answer, any other a plain one, whatever JSON it is."""
    url_event = {"version": "2.0", "requestContext": {"http": {"method": "GET", "path": "/"}}}
    async with Fleet("handler:handler", HELLO, shop.variables) as fleet:
        page, *plain = [
            json.loads((await fleet.invoke(json.dumps(event).encode())).payload) for event in (url_event, None, [])
        ]
    assert (page["statusCode"], page["headers"]["content-type"]) == (200, "application/json")
    assert json.loads(page["body"])["postgresql"] == plain[0]["postgresql"] == plain[1]["postgresql"]


def test_every_product_is_ordered_in_the_demo() -> None:
    """The demo's events are orders of all products of the schema, and JSON."""
    events = [json.loads(event) for event in order_events(ORDERS)]
    assert {event["product_id"] for event in events} == set(range(1, PRODUCTS + 1))
    assert f"generate_series(1, {PRODUCTS})" in (ORDERS / "schema.sql").read_text()


@pytest.mark.parametrize("path", sorted([*ORDERS.glob("*.py"), *HELLO.glob("*.py")]), ids=lambda path: path.name)
def test_examples_need_only_the_layer(path: Path) -> None:
    """Each file imports the standard library, the layer and its own folder, in the syntax of Python 3.12."""
    tree = ast.parse(path.read_text(), feature_version=(3, 12))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    own = {neighbour.stem for neighbour in path.parent.glob("*.py")}
    assert imported <= IN_THE_LAYER | own | set(sys.stdlib_module_names)
