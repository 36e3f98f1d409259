"""Users' types and tables, looked up by the endpoint's own sessions through PgBouncer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import BatchExecuteStatement, BeginTransaction, ExecuteStatement, Place

from .endpoint_pool import EndpointPool, Running, endpoint_pool, operations


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_types") as running:
        running.sql("create type mood as enum ('sad', 'happy')")
        running.sql("create domain size as int")
        running.sql("create table public.cats (id serial primary key, mood mood, sizes size[])")
        running.sql("grant all on all tables in schema public to public")
        running.sql("grant all on all sequences in schema public to public")
        yield running


@pytest_asyncio.fixture
async def data(pool: EndpointPool) -> AsyncIterator[Running]:
    async with operations(pool) as running:
        yield running


FIELDS = [
    [{"stringValue": "sad"}, {"arrayValue": {"stringValues": ["happy", None]}}, {"arrayValue": {"longValues": [3]}}]
]
SELECT = "select 'sad'::mood, array['happy', null]::mood[], '{3}'::size[]"


@pytest.mark.parametrize("is_read_only", [False, True])
async def test_users_types_of_any_caller(data: Running, is_read_only: bool) -> None:
    """Enums, arrays of them and of domains are read, for a caller that may only read too."""
    for _ in range(2):
        assert (await data.run(ExecuteStatement(SELECT), is_read_only=is_read_only))["records"] == FIELDS


async def test_generated_fields_of_users_types(data: Running) -> None:
    """RETURNING in a batch gives users' types in their form."""
    call = BatchExecuteStatement(
        "insert into cats (mood, sizes) values ('happy', '{1,2}') returning mood, sizes", Place(), [()]
    )
    fields = [{"stringValue": "happy"}, {"arrayValue": {"longValues": [1, 2]}}]
    assert await data.run(call) == {"updateResults": [{"generatedFields": fields}]}


async def test_metadata_of_a_table(data: Running) -> None:
    """includeResultMetadata names the table behind a column."""
    call = ExecuteStatement("select id as number, mood from cats where false", includes_metadata=True)
    answer = await data.run(call)
    assert described(answer) == [("number", "serial", "cats", 0), ("mood", "mood", "cats", 1)]
    assert answer["records"] == []


async def test_types_and_tables_of_the_transaction(data: Running) -> None:
    """A type and a table that only the transaction knows are read in it; a failed look-up does not end it."""
    transaction = (await data.run(BeginTransaction()))["transactionId"]
    await data.values("create type pg_temp.colour as enum ('red')", transaction)
    await data.values("create temporary table own (c pg_temp.colour[])", transaction)
    call = ExecuteStatement(
        "insert into own values ('{red,null}') returning c", Place(transaction_id=transaction), includes_metadata=True
    )
    answer = await data.run(call)
    assert answer["records"] == [[{"arrayValue": {"stringValues": ["red", None]}}]]
    assert described(answer) == [("c", "_colour", "own", 1)]
    assert await data.values("select count(*) from own", transaction) == [[1]]


def described(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    members = ("label", "typeName", "tableName", "nullable")
    return [tuple(column[member] for member in members) for column in answer["columnMetadata"]]
