"""Faults of the database, one at a time: what happens to its two servers, and to the functions meanwhile."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from emberpool_local.lab.database import LabDatabase
from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.ledger import lay_out, read_ledger
from emberpool_local.lab.load import Load
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres

from .working_rig import happened, working_load, works

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = RigOptions(tasks=2, has_aws=False, has_clock=False)
CACHED_SECONDS = 2.1  # longer than PgBouncer may know an address: it looks up anew when its connections are lost
STARTED = "select pg_postmaster_start_time()"
TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s"
# Run at a task's node: asks a connection from before the name moves, and one from after it, who is a reader.
TWO_CONNECTIONS = """
import os, psycopg
def is_reader(connection):
    return connection.execute("select pg_is_in_recovery()").fetchone()[0]
before = psycopg.connect(os.environ["LOGIN"])
print(is_reader(before))
input()
print(is_reader(psycopg.connect(os.environ["LOGIN"])), is_reader(before))
"""


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram) -> Iterator[Rig]:
    """Two tasks and a ledger."""
    with open_rig(OPTIONS) as running:
        lay_out(running.database.superuser_conninfo(), running.database.role)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(rig: Rig) -> AsyncIterator[Load]:
    """Functions that are at work all the time."""
    async with working_load(rig) as running:
        await works(running)
        yield running


async def check_ledger(rig: Rig, load: Load) -> None:
    """Check that every transfer that was acknowledged is in the ledger, on the primary of now, and there once."""
    acknowledged = [one.transfer.number for one in load.invocations if one.kind == "succeeded"]
    ledger = await asyncio.to_thread(read_ledger, rig.database.superuser_conninfo())
    there = [transfer.number for transfer in ledger.transfers]
    assert sorted(set(acknowledged) - set(there)) == []
    assert len(there) == len(set(there))


@pytest.mark.parametrize("name", ["database-restart-fast", "database-restart-immediate"])
async def test_restarted_database_is_the_same_one(rig: Rig, load: Load, name: str) -> None:
    """The same server has started again, its standby follows it, and no acknowledged commit is lost."""
    database = rig.database
    primary, started = database.primary, await asyncio.to_thread(database.ask, STARTED)
    assert await happened(rig, load, FAULTS[name]) == []
    assert database.primary is primary
    assert await asyncio.to_thread(database.ask, STARTED) > started
    assert has_standby_in_step(database)
    await check_ledger(rig, load)


async def test_standby_takes_the_place_of_a_primary_that_crashed(rig: Rig, load: Load) -> None:
    """Twice: the tasks work with the other server, which has every acknowledged commit and a new standby."""
    for seed in (1, 2):  # the name moves before the promotion, and after it
        before = rig.database.primary_node
        assert await happened(rig, load, FAULTS["failover"], seed) == []
        assert rig.database.primary_node != before
        assert has_standby_in_step(rig.database)
        await check_ledger(rig, load)


@pytest.mark.parametrize("seed", [1, 2])
async def test_writes_wait_while_the_name_leads_to_a_reader(rig: Rig, load: Load, seed: int) -> None:
    """Nobody is let through to the old writer, although every pool has looked its name up a moment before."""
    await asyncio.sleep(CACHED_SECONDS)
    await asyncio.to_thread(rig.database.ask, TERMINATE, rig.database.role)
    await works(load)
    former = rig.database.primary
    since = len(load.invocations)
    assert await happened(rig, load, FAULTS["old-primary-read-only"], seed) == []
    assert rig.database.standby is former
    assert is_reader(former)
    assert has_standby_in_step(rig.database)
    assert [one for one in load.invocations[since:] if one.failure and "read-only" in one.failure.message] == []
    await check_ledger(rig, load)


async def test_name_moves_and_connections_stay(rig: Rig, load: Load) -> None:
    """A task that connects after the name has moved is with the other server; who was connected stays."""
    del load
    assert await asyncio.to_thread(asked_before_and_after_the_name_moved, rig) == ["False\n", "True False\n"]


def asked_before_and_after_the_name_moved(rig: Rig) -> list[str]:
    database, node = rig.database, rig.tasks[0].node
    settings = database.proxy_settings(node)
    login = make_conninfo(database.primary.conninfo(), host=settings["database_host"], port=settings["database_port"])
    with subprocess.Popen(
        node.command([sys.executable, "-u", "-c", TWO_CONNECTIONS]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LOGIN": login},
    ) as asking:
        assert asking.stdin is not None
        assert asking.stdout is not None
        answers = [asking.stdout.readline()]
        database.lead_name(database.standby_node)
        try:
            asking.stdin.write("\n")
            asking.stdin.flush()
            return [*answers, asking.stdout.readline()]
        finally:
            database.lead_name(database.primary_node)


def is_reader(server: EmbeddedPostgres) -> bool:
    with psycopg.connect(server.conninfo(by_socket=True)) as connection:
        return connection.execute("select pg_is_in_recovery()").fetchone() == (True,)


def has_standby_in_step(database: LabDatabase) -> bool:
    return database.ask("select sync_state from pg_stat_replication") == [("sync",)]
