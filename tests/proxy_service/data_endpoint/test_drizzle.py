"""drizzle-orm's aws-data-api driver on AWS's own SDK for JavaScript: another real client, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import CLIENT_PASSWORD, CLIENT_USER, DATABASE, Proxy
from .served import HOST_NAME, authority, start_endpoint

PROGRAM = Path(__file__).with_name("drizzle") / "shop.mjs"
PROGRAM_SECONDS = 60
ADA = "Ada: 'x' :1 \\ \"y\" ü"


@pytest.fixture(scope="module")
def seen(make_shared_proxy: Callable[..., Proxy]) -> dict[str, Any]:
    """What the program saw."""
    proxy = start_endpoint(make_shared_proxy)
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL_RDS_DATA": f"https://{HOST_NAME}:{proxy.setting('data_port')}",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": CLIENT_USER,
        "AWS_SECRET_ACCESS_KEY": CLIENT_PASSWORD,
        "NODE_EXTRA_CA_CERTS": str(authority(proxy)),
        "DATABASE": DATABASE,
        "TZ": "UTC",
    }
    ran = subprocess.run(
        ["node", PROGRAM], env=environment, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_every_column_comes_back_as_it_was_inserted(seen: dict[str, Any]) -> None:
    """Uuid, enum, arrays, jsonb, times with microseconds, decimals and 64-bit numbers, through RETURNING."""
    assert seen["changed"] == []
    assert seen["emptyArray"] == []
    assert {"settings", "since", "seen", "balance", "visits", "active"} <= set(seen["nulls"])


def test_conditions_find_by_every_type(seen: dict[str, Any]) -> None:
    """Nothing needs a cast by hand, and a slice is no parameter."""
    found = seen["found"]
    assert found.pop("enumeration") == ["bare"]
    assert found.pop("list") == ["bare", ADA]
    assert found == {what: [ADA] for what in found}


def test_relations_joins_and_prepared_queries_work(seen: dict[str, Any]) -> None:
    """Relational queries are lateral joins with JSON; a prepared one is sent again with other values."""
    assert seen["related"] == {"name": ADA, "orders": [{"what": "cake"}, {"what": "tea"}]}
    assert [row["what"] for row in seen["joined"]] == ["tea", "cake", "water"]
    assert seen["raw"] == [{"number": 3, "letter": "x"}]
    assert seen["prepared"] == [[{"what": "tea"}], []]


def test_updates_and_upserts_return_the_new_rows(seen: dict[str, Any]) -> None:
    """UPDATE, INSERT ... ON CONFLICT and DELETE with RETURNING."""
    assert seen["updated"] == {"settings": {"changed": True}, "tags": ["new"], "seen": None}
    assert seen["upserted"] == [{"mood": "busy"}]
    assert seen["deleted"] == 1


def test_transactions_commit_and_roll_back(seen: dict[str, Any]) -> None:
    """Nested ones are savepoints: one that failed takes nothing else with it."""
    assert seen["orders"] == ["tea", "cake", "committed", "kept"]
    assert "22012" in seen["nested"]["message"]
    assert seen["rolledBack"] is not None


def test_errors_have_the_types_of_the_sdk(seen: dict[str, Any]) -> None:
    """What a program catches by name, with PostgreSQL's own message and SQLSTATE."""
    assert seen["duplicate"]["kind"] == seen["noSuchTable"]["kind"] == "DatabaseErrorException"
    assert "SQLState: 23505" in seen["duplicate"]["message"]
    assert seen["noSuchTable"]["message"] == 'ERROR: relation "nowhere" does not exist; Position: 15; SQLState: 42P01'
    assert seen["tooLarge"]["kind"] == "BadRequestException"
    assert "response size limit" in seen["tooLarge"]["message"]
