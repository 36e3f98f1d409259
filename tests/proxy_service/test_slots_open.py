"""What keeps a task from opening its control connection: each is one clear error that says what to mend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.errors import BudgetUnusable

from .bare_pgbouncer import CLIENT, CLIENT_PASSWORD, add_role, bare_pgbouncer, served
from .bare_pgbouncer import DATABASE as POOLED_DATABASE
from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER
from .slot_sessions import fleet_settings, locks_of, sessions, slots_of

ADVISORY_FUNCTIONS = (
    "pg_try_advisory_lock(integer,integer)",
    "pg_try_advisory_lock_shared(integer,integer)",
    "pg_advisory_lock_shared(integer,integer)",
    "pg_advisory_unlock(integer,integer)",
    "pg_advisory_unlock_shared(integer,integer)",
)


@pytest.fixture(scope="module")
def scratch(database: EmbeddedPostgres) -> str:
    """A database to revoke things in."""
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        admin.execute("create database slots_scratch")
    return "slots_scratch"


@contextmanager
def revoked(database: EmbeddedPostgres, scratch: str, what: str) -> Iterator[None]:
    """Nobody may do `what` in the scratch database."""
    with psycopg.connect(database.conninfo(database=scratch), autocommit=True) as admin:
        admin.execute(f"revoke {what} from public")
        try:
            yield
        finally:
            admin.execute(f"grant {what} to public")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_pooler_in_between_is_refused(
    database: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, pool_mode: str
) -> None:
    """Behind a pooler locks stay with whoever uses its connection next: the task does not even try."""
    await asyncio.to_thread(add_role, database)
    with bare_pgbouncer(
        pgbouncer_program, {POOLED_DATABASE: served(database)}, settings={"pool_mode": pool_mode}
    ) as pooler:
        slots = slots_of(
            fleet_settings(
                database,
                "behind",
                database_port=pooler.port,
                database_name=POOLED_DATABASE,
                database_user=CLIENT,
                database_password=CLIENT_PASSWORD,
                client_user="other",
            )
        )
        with pytest.raises(BudgetUnusable, match="through a pooler .*EMBERPOOL_PROXY_DATABASE_HOST"):
            await slots.open()
        assert not slots.is_open
        # Nothing was left in the connection that the pooler will give to somebody else.
        with psycopg.connect(pooler.conninfo(), autocommit=True) as next_client:
            assert next_client.execute("show statement_timeout").fetchone() == ("0",)
            held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            assert next_client.execute(held).fetchone() == (0,)
            assert next_client.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("function", ADVISORY_FUNCTIONS)
async def test_missing_right_to_lock_is_named(database: EmbeddedPostgres, scratch: str, function: str) -> None:
    """A database whose advisory functions were revoked from the public: the error is the grant to run."""
    with revoked(database, scratch, f"execute on function {function}"):
        slots = slots_of(fleet_settings(database, "grants", budget_database=scratch))
        with pytest.raises(BudgetUnusable) as refused:
            await slots.open()
    assert f'grant execute on function {function} to "{DATABASE_USER}"' in str(refused.value)
    assert scratch in str(refused.value)
    assert str(refused.value).count("grant ") == 1
    assert locks_of(database, "grants") == []


async def test_all_missing_rights_are_named_at_once(database: EmbeddedPostgres, scratch: str) -> None:
    """Nobody has to start the proxy once for each of them."""
    functions = "execute on function " + ", ".join(ADVISORY_FUNCTIONS)
    with revoked(database, scratch, functions), revoked(database, scratch, "select on pg_locks"):
        slots = slots_of(fleet_settings(database, "grants", budget_database=scratch))
        with pytest.raises(BudgetUnusable) as refused:
            await slots.open()
    assert str(refused.value).count("grant ") == len(ADVISORY_FUNCTIONS) + 1


@pytest.mark.parametrize("view", ["pg_locks", "pg_stat_activity"])
async def test_missing_right_to_read_is_named(database: EmbeddedPostgres, scratch: str, view: str) -> None:
    """The views that tell who holds what may be closed to the public, too."""
    with revoked(database, scratch, f"select on {view}"):
        slots = slots_of(fleet_settings(database, "grants", budget_database=scratch))
        with pytest.raises(BudgetUnusable, match=f'grant select on {view} to "{DATABASE_USER}"'):
            await slots.open()
        assert not slots.is_open


async def test_database_that_the_role_may_not_enter_is_named(database: EmbeddedPostgres, scratch: str) -> None:
    """Without CONNECT the error says so, and which setting names another database."""
    with revoked(database, scratch, f"connect on database {scratch}"):
        slots = slots_of(fleet_settings(database, "grants", budget_database=scratch))
        with pytest.raises(BudgetUnusable, match=f'permission denied for database "{scratch}".*BUDGET_DATABASE'):
            await slots.open()


async def test_database_that_does_not_exist_is_named(database: EmbeddedPostgres) -> None:
    """A misspelt budget_database is no outage: the error names it."""
    slots = slots_of(fleet_settings(database, "grants", budget_database="nowhere"))
    with pytest.raises(BudgetUnusable, match='database "nowhere" does not exist.*BUDGET_DATABASE'):
        await slots.open()


async def test_rights_revoked_later_lose_the_session(database: EmbeddedPostgres, scratch: str) -> None:
    """A question that is refused ends the session like any other failure, and the next open says what is missing."""
    async with sessions(database, "revoked-later") as opened:
        slots = await opened(budget_database=scratch)
        with revoked(database, scratch, f"execute on function {ADVISORY_FUNCTIONS[0]}"):
            with pytest.raises(psycopg.OperationalError, match="permission denied for function"):
                await slots.take([0], 1)
            assert not slots.is_open
            with pytest.raises(BudgetUnusable, match="grant execute on function"):
                await slots.open()


async def test_database_that_is_away_may_come_back(database: EmbeddedPostgres) -> None:
    """Nobody listens: an error that may pass, not one for people."""
    slots = slots_of(fleet_settings(database, "away", database_port=free_port()))
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await slots.open()


async def test_server_that_never_answers_a_login_is_given_up(database: EmbeddedPostgres) -> None:
    """A port that takes connections and says nothing costs no more than the deadline."""
    kept: list[object] = []  # a stream that nobody has is closed
    silent = await asyncio.start_server(lambda *streams: kept.append(streams), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    slots = slots_of(fleet_settings(database, "silent", database_port=port), deadline_seconds=0.3)
    with pytest.raises(TimeoutError):
        await slots.open()
    silent.close()


async def test_session_outside_the_database_of_the_pool_counts_its_connections(
    database: EmbeddedPostgres, scratch: str
) -> None:
    """The slots may live in another database of the server: the pool's connections are counted all the same."""
    async with sessions(database, "elsewhere") as opened:
        slots = await opened(budget_database=scratch)
        before = (await slots.view()).pool_connections
        with psycopg.connect(database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE)):
            assert (await slots.view()).pool_connections == before + 1
