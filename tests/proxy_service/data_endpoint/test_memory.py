"""What libpq may take, and what others may meanwhile."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import pq

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint import results, session
from emberpool_proxy.data_endpoint.encoders import Wanted
from emberpool_proxy.data_endpoint.memory import GrowthBound, data_bytes, result_bytes
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.data_endpoint.rows import TEXT
from emberpool_proxy.data_endpoint.steps import Step
from emberpool_proxy.data_endpoint.types import ColumnType

from .endpoint_pool import endpoint_pool
from .parsed_answers import MIB

GROWTH_BYTES = 256 * MIB  # never touched: it costs address space only


@pytest.fixture
def bound() -> Iterator[GrowthBound]:
    """A bound on this process, whose limit is as before when the test is over."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    yield GrowthBound()
    resource.setrlimit(resource.RLIMIT_DATA, before)


def test_what_is_far_too_large_is_refused(bound: GrowthBound) -> None:
    """Until then nothing is; what is as large as the bound allows is not, whatever the process has."""
    assert len(bytearray(2 * GROWTH_BYTES)) == 2 * GROWTH_BYTES
    gc.collect()
    bound.start(GROWTH_BYTES)
    kept = []
    for more_bytes in (0, GROWTH_BYTES // 2, 2 * MIB):
        kept.append(bytearray(more_bytes))
        bound.renew()
        with pytest.raises(MemoryError):
            bytearray(GROWTH_BYTES + 128 * MIB)  # garbage of other tests may go meanwhile
        assert len(bytearray(GROWTH_BYTES - 64 * MIB)) == GROWTH_BYTES - 64 * MIB


@pytest.mark.usefixtures("bound")
def test_bound_is_no_more_than_the_tasks_own() -> None:
    """A lower limit of whoever started the task stays, also while it is lifted."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    own = (data_bytes() + GROWTH_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, own)
    bound = GrowthBound()
    bound.start(4 * GROWTH_BYTES)
    assert resource.getrlimit(resource.RLIMIT_DATA) == own
    with bound.lifted():
        assert resource.getrlimit(resource.RLIMIT_DATA) == own
    assert resource.getrlimit(resource.RLIMIT_DATA) == own


def test_string_is_encoded_however_much_that_takes(
    bound: GrowthBound, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """orjson wants eight times its length at once, and ends the process when that is refused."""
    monkeypatch.setattr(results, "GROWTH", bound)
    with psycopg.connect(postgres.conninfo()) as connection:
        result = connection.pgconn.exec_(b"select repeat('x', 50000000)")
    rows = results.JsonRows([ColumnType(TEXT, "text")], Wanted(), 64 * MIB)
    bound.start(GROWTH_BYTES)
    rows.add(result)
    assert len(rows.json()) > 50_000_000
    with pytest.raises(MemoryError):
        bytearray(2 * GROWTH_BYTES)


async def test_bound_is_renewed_before_anybody_else_asks(
    bound: GrowthBound,
    postgres: EmbeddedPostgres,
    pgbouncer_program: PgbouncerProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libpq's room for a row is not taken from what others may have: they would end the process."""
    monkeypatch.setattr(session, "GROWTH", bound)
    with endpoint_pool(postgres, pgbouncer_program, "data_memory") as pool:
        sessions = SessionPool([pool.folder], pool.port)
        taken = await sessions.take(pool.caller())
        bound.start(GROWTH_BYTES)
        running = taken.run((Step(b"select repeat('x', 40000000)", is_asked=True),), most_bytes=MIB)
        least_room = GROWTH_BYTES
        while not running.done():
            await asyncio.sleep(0)
            soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
            least_room = min(least_room, soft - data_bytes())
        sessions.close()
    assert least_room > GROWTH_BYTES - 32 * MIB


def test_memory_of_a_result_is_told_by_libpq(postgres: EmbeddedPostgres) -> None:
    """By the one that psycopg uses; a failed statement's result is small."""
    with psycopg.connect(postgres.conninfo()) as connection:
        for length in (1_000, 5_000_000):
            result = connection.pgconn.exec_(f"select repeat('x', {length})".encode())
            assert result.status == pq.ExecStatus.TUPLES_OK
            assert length <= result_bytes(result) < length + 10_000
