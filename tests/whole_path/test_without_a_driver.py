"""A handler without a driver: data_client -> data endpoint -> PgBouncer -> PostgreSQL, by the real runtime client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from emberpool_local.host.waiting import wait_until
from emberpool_local.stack import LocalStack

from ..local_lambda import fleet_of
from ..processes import children_of, command_line

HANDLER = """
import emberpool

data = emberpool.data_client()
INSERT = "insert into orders (id, total) values (:id, :total) returning id"


def handler(event, context):
    parameters = [
        {"name": "id", "value": {"stringValue": event["id"]}},
        {"name": "total", "value": {"doubleValue": event["total"]}},
    ]
    return data.execute_statement(sql=INSERT, parameters=parameters)["records"][0][0]["stringValue"]
"""


ENVIRONMENTS = 10


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    """The local stack, with the endpoint."""
    with LocalStack(max_connections=20, max_server_connections=4, has_data_endpoint=True) as stack:
        with psycopg.connect(stack.direct_conninfo) as connection:
            connection.execute("create table orders (id uuid primary key, total numeric)")
        yield stack


async def test_burst_of_handlers_without_a_driver_is_committed_once_each(stack: LocalStack, tmp_path: Path) -> None:
    """Forty invocations in ten environments, the endpoint killed between them: what was answered is there, once."""
    identities = [f"00000000-0000-4000-8000-{number:012}" for number in range(40)]
    async with fleet_of(
        tmp_path, HANDLER, environment=stack.handler_environment(), max_environments=ENVIRONMENTS
    ) as fleet:
        events = [json.dumps({"id": identity, "total": 9.5}).encode() for identity in identities]
        first = await asyncio.gather(*(fleet.invoke(event) for event in events[:20]))
        os.kill(_endpoint(stack), signal.SIGKILL)  # with the connections that the environments keep
        await asyncio.to_thread(wait_until, "the endpoint is not back", lambda: _serves(stack), 20.0)
        others = await asyncio.gather(*(fleet.invoke(event) for event in events[20:]))
    for outcome, identity in zip(first, identities[:20], strict=True):
        assert outcome.status == "succeeded", f"{outcome.error_type}: {outcome.error_message}"
        assert json.loads(outcome.payload) == identity
    # Sent on a connection that had died with the endpoint: it cannot know that the first attempt came to nothing.
    refused = [outcome for outcome in others if outcome.status != "succeeded"]
    assert all("is not known" in outcome.error_message for outcome in refused), [each.error_message for each in refused]
    assert len(refused) <= ENVIRONMENTS
    with psycopg.connect(stack.direct_conninfo) as connection:
        assert connection.execute("select count(*) from orders").fetchone() == (40 - len(refused),)


def _serves(stack: LocalStack) -> bool:
    try:
        with urllib.request.urlopen(f"{stack.proxy.data_url}/openapi.json"):
            return True
    except OSError:
        return False


def _endpoint(stack: LocalStack) -> int:
    """Return the process id of the endpoint."""
    supervisor = stack.proxy.child.pid
    for child in children_of(supervisor):
        if "data-endpoint" in command_line(child):
            return child
    raise AssertionError("there is no endpoint")
