"""Limits of server connections on real PgBouncers under load: they hold at every moment, and no client notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from emberpool_local.lab.sampler import BackendSampler
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.budget_limits import BACKENDS_END_WITHIN_SECONDS
from emberpool_proxy.pgbouncer.config import LIFETIME, SERVER_IDLE, START_LIMIT

from .bare_pgbouncer import ROLE, add_role
from .limited_pools import FIRST, SECOND, LimitedPools, busy_clients, limited_pools
from .watched_pool import until

BOUND_SECONDS = 10.0


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server whose connections are all this module's."""
    with EmbeddedPostgres(max_connections=80) as server:
        add_role(server)
        yield server


@pytest.fixture
async def one_pool(pgbouncer_program: PgbouncerProgram, own_postgres: EmbeddedPostgres) -> AsyncIterator[LimitedPools]:
    async with limited_pools(pgbouncer_program, own_postgres) as pools:
        yield pools


@pytest.fixture
async def two_pools(pgbouncer_program: PgbouncerProgram, own_postgres: EmbeddedPostgres) -> AsyncIterator[LimitedPools]:
    async with limited_pools(pgbouncer_program, own_postgres, (FIRST, SECOND)) as pools:
        yield pools


@pytest.fixture(params=[(FIRST,), (FIRST, SECOND)], ids=["one entry", "two entries"])
async def limited(
    request: pytest.FixtureRequest, pgbouncer_program: PgbouncerProgram, own_postgres: EmbeddedPostgres
) -> AsyncIterator[LimitedPools]:
    """Limits are SET when there is one entry, and read from a file when there are several."""
    async with limited_pools(pgbouncer_program, own_postgres, request.param) as pools:
        yield pools


@contextmanager
def sampled(server: EmbeddedPostgres, path: Path) -> Iterator[BackendSampler]:
    with BackendSampler(server.conninfo(), ROLE, "unused", path / "samples.jsonl") as sampler:
        yield sampler


def most_since(sampler: BackendSampler, moment: float) -> int:
    return max(sample.connections for sample in sampler.samples if sample.at > moment)


async def seen(sampler: BackendSampler, connections: int) -> float:
    """Wait until the database has so many connections, and return when: a state of a moment may be in no sample."""
    async with asyncio.timeout(10):
        while (last := sampler.read()[-1]).connections != connections:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)
    return last.at


async def test_busy_pool_shrinks_without_an_error(
    limited: LimitedPools, own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A pool whose connections are never free comes down to its limit, stays there, and no client is told anything."""
    never_idle = busy_clients(limited.conninfo(), statement="select pg_sleep(0.02)")
    with sampled(own_postgres, tmp_path) as sampler, never_idle as busy:
        await limited.grow(20)
        await seen(sampler, 20)
        await limited.shrink({limited.key(): 2})
        shrunk = await seen(sampler, 2)  # backends end after PgBouncer's word
        assert (await limited.use()).waiting > 0
        await asyncio.sleep(0.5)  # what it must not do in the meantime
    assert busy.errors == []
    assert busy.transactions > 0
    assert most_since(sampler, 0) == 20, sampler.summary()
    assert most_since(sampler, shrunk) == 2, sampler.summary()


async def test_idle_pool_shrinks_to_its_limit(one_pool: LimitedPools) -> None:
    """A pool that nobody uses keeps exactly its limit of idle connections."""
    with busy_clients(one_pool.conninfo(), clients=12):
        await one_pool.grow(10)
    await one_pool.shrink({one_pool.key(): 4})
    assert (await one_pool.use()).servers == 4
    assert (await one_pool.limits.read())[one_pool.key()].limit == 4


async def test_connections_live_as_long_as_before_once_the_pool_has_shrunk(one_pool: LimitedPools) -> None:
    """The short lifetime ends with the shrinking: the connections that are left are kept."""
    with busy_clients(one_pool.conninfo(), clients=20):
        await one_pool.grow(8)
        await one_pool.shrink({one_pool.key(): 2})
        config = await one_pool.engine.console.show_config()
        assert float(config[LIFETIME].value) == 900
        assert (config["default_pool_size"].value, config["max_db_connections"].value) == ("2", "2")
        kept = {row.remote_pid for row in await one_pool.engine.console.show_servers()}
        await asyncio.sleep(0.5)  # longer than any lifetime of the shrinking
        assert {row.remote_pid for row in await one_pool.engine.console.show_servers()} == kept


async def test_raised_limit_is_used_at_once_by_who_waits(one_pool: LimitedPools) -> None:
    """Clients that wait get the new connections without anything else happening."""
    with busy_clients(one_pool.conninfo(), clients=20):
        await one_pool.grow(2)
        assert (await one_pool.use()).waiting > 0
        await one_pool.grow(20)
        assert (await one_pool.use()).waiting == 0


async def test_one_pool_grows_by_what_the_other_gives(
    two_pools: LimitedPools, own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Lower, count down, raise: two busy pools swap their parts, and never have more than the total together."""
    first, second = two_pools.key(FIRST), two_pools.key(SECOND)
    with (
        sampled(own_postgres, tmp_path) as sampler,
        busy_clients(two_pools.conninfo(FIRST), 30) as some,
        busy_clients(two_pools.conninfo(SECOND), 30) as others,
    ):
        await two_pools.grow(16, FIRST)
        await two_pools.grow(4, SECOND)
        await seen(sampler, 20)
        spared = {row.remote_pid for row in await two_pools.engine.console.show_servers() if row.database == SECOND}
        await two_pools.shrink({first: 4, second: 4})
        assert spared == {
            row.remote_pid for row in await two_pools.engine.console.show_servers() if row.database == SECOND
        }
        await seen(sampler, 8)  # a backend ends after PgBouncer has let it go
        await two_pools.grow(16, SECOND)
        await seen(sampler, 20)
    assert some.errors == others.errors == []
    assert most_since(sampler, 0) == 20, sampler.summary()


async def test_reload_for_another_reason_keeps_the_limits(limited: LimitedPools) -> None:
    """New files of any kind, read again and again, change no limit and end no connection."""
    with busy_clients(limited.conninfo(), clients=20) as busy:
        await limited.grow(7)
        servers = {row.remote_pid for row in await limited.engine.console.show_servers()}
        for number in range(5):
            rows = (f"host all all 10.0.0.{number}/32 reject",)
            assert await limited.rendering.change(limited.engines, lambda known: replace(known, rejected=rows))  # noqa: B023 (called at once)
        databases = {row.name: row.max_connections for row in await limited.engine.console.show_databases()}
        assert databases[FIRST] == 7
        assert {row.remote_pid for row in await limited.engine.console.show_servers()} == servers
    assert busy.errors == []


async def test_reload_in_the_middle_of_shrinking_does_not_stop_it(limited: LimitedPools) -> None:
    """Files that change all the time while a pool shrinks neither stop it nor bring its old limit back."""

    async def keep_reloading() -> None:
        for number in range(1_000):
            rows = (f"host all all 10.0.0.{number % 200}/32 reject",)
            await limited.rendering.change(limited.engines, lambda known: replace(known, rejected=rows))  # noqa: B023 (called at once)
            await asyncio.sleep(0.02)

    with busy_clients(limited.conninfo(), clients=20) as busy:
        await limited.grow(15)
        reloading = asyncio.create_task(keep_reloading())
        await limited.shrink({limited.key(): 3})
        assert not reloading.done()
        reloading.cancel()
    assert busy.errors == []


async def test_killed_pgbouncer_comes_back_with_one_connection_a_pool(limited: LimitedPools) -> None:
    """Whatever it had, the next one begins with one connection a pool, and what it had counts as lingering."""
    with busy_clients(limited.conninfo(), clients=10):
        await limited.grow(6)
        rows = ("host all x 10.0.0.1/32 reject",)
        assert await limited.rendering.change(limited.engines, lambda known: replace(known, rejected=rows))
    others = len(limited.entries) - 1
    assert limited.limits.lingering() == 0
    await limited.kill()
    limited.tell_supervised()
    assert limited.limits.lingering() == 6 + others
    uses = await limited.limits.read()
    assert {key.entry: use.limit for key, use in uses.items()} == dict.fromkeys(limited.entries, START_LIMIT)
    assert not await limited.limits.apply({limited.key(): 6}, frozenset())  # nobody is there to hear it
    await limited.start()
    rows = [row for row in await limited.engine.console.show_databases() if not row.is_console]
    assert {(row.name, row.max_connections, row.pool_size) for row in rows} == {
        (entry, START_LIMIT, START_LIMIT) for entry in limited.entries
    }
    with busy_clients(limited.conninfo(), clients=10) as busy:
        assert (await limited.use()).servers == 1
        assert await limited.rendering.change(
            limited.engines, lambda known: replace(known, rejected=("host all x 10.0.0.2/32 reject",))
        )
        assert (await limited.use()).servers == 1
        await limited.grow(6)
    assert busy.errors == []
    await until("it lingers for ever", lambda: not limited.limits.lingering(), BACKENDS_END_WITHIN_SECONDS + 1)
    assert not (await limited.use()).is_settling


async def test_next_agent_finds_the_limits_in_force(limited: LimitedPools) -> None:
    """An agent that knows nothing reads the limits from PgBouncer, and its first RELOAD does not undo them."""
    await limited.set(9)
    await limited.limits.close()
    await limited.engines.close()
    limited.new_agent()
    limited.tell_supervised()
    await until("the next agent did not attach", lambda: limited.engine.is_prepared)
    assert await limited.rendering.change(
        limited.engines, lambda known: replace(known, rejected=("host all x 10.0.0.1/32 reject",))
    )
    assert (await limited.use()).limit == 9
    rows = await limited.engine.console.show_databases()
    assert next(row.max_connections for row in rows if row.name == FIRST) == 9


@pytest.mark.parametrize("entries", [(FIRST,), (FIRST, SECOND)], ids=["one", "two"])
async def test_limits_fall_to_the_floor_at_once(
    pgbouncer_program: PgbouncerProgram, own_postgres: EmbeddedPostgres, entries: tuple[str, ...]
) -> None:
    """Without a single step of the event loop PgBouncer is told the floor, and other commands do not undo it."""
    async with limited_pools(
        pgbouncer_program, own_postgres, entries, max_server_connections=50, most_tasks_alive=2, floor_connections=4
    ) as pools:
        await pools.set(20)
        pools.limits.lower_at_once()

        async def limit() -> int:
            rows = [row for row in await pools.engine.console.show_databases() if not row.is_console]
            assert all(row.pool_size == row.max_connections for row in rows)
            return sum(row.max_connections for row in rows)

        async with asyncio.timeout(BOUND_SECONDS):
            while await limit() > 4:  # noqa: ASYNC110 (PgBouncer tells it only when asked)
                await asyncio.sleep(0.01)
        assert sum(use.limit for use in (await pools.limits.read()).values()) == await limit()


async def test_lowering_wins_over_a_raise_under_way(
    pgbouncer_program: PgbouncerProgram, own_postgres: EmbeddedPostgres
) -> None:
    """A raise that is being told when the limits must fall ends with the low ones in force."""
    async with limited_pools(
        pgbouncer_program, own_postgres, max_server_connections=50, most_tasks_alive=2, floor_connections=4
    ) as pools:
        await pools.set(10)
        os.kill(pools.engine.pid, signal.SIGSTOP)
        raising = asyncio.create_task(pools.limits.apply({pools.key(): 30}, frozenset()))
        await asyncio.sleep(0.05)  # it has been sent
        pools.limits.lower_at_once()
        os.kill(pools.engine.pid, signal.SIGCONT)
        await raising
        rows = await pools.engine.console.show_databases()
        assert [(row.max_connections, row.pool_size) for row in rows if row.name == FIRST] == [(4, 4)]
        assert (await pools.use()).limit == 4


async def test_pgbouncer_that_hangs_keeps_what_it_had(one_pool: LimitedPools) -> None:
    """While it does not answer, its connections count as they were last seen; then it takes commands again."""
    with busy_clients(one_pool.conninfo(), clients=10) as busy:
        await one_pool.grow(5)
        os.kill(one_pool.engine.pid, signal.SIGSTOP)
        try:
            assert (await one_pool.use()).servers == 5
            assert not await one_pool.limits.apply({one_pool.key(): 8}, frozenset())
            assert (await one_pool.use()).limit == 8  # it may hear it yet
        finally:
            os.kill(one_pool.engine.pid, signal.SIGCONT)
        await one_pool.grow(6)
    assert busy.errors == []


async def test_settings_that_stand_in_outlive_a_reload(one_pool: LimitedPools) -> None:
    """What the drain and the login gate SET stays through RELOADs and a shrinking, until they end it."""
    engine, rejected = one_pool.engine, iter(range(100))

    async def stand_in(**values: str | None) -> None:
        for name, value in one_pool.rendering.stand_in(engine, values).items():
            await engine.console.set(name, value)

    async def seen() -> tuple[str, ...]:
        config = await engine.console.show_config()
        return tuple(config[name].value for name in (LIFETIME, SERVER_IDLE, "client_idle_timeout"))

    async def seen_after_a_reload() -> tuple[str, ...]:
        before = await seen()
        rows = (f"host all all 10.0.0.{next(rejected)}/32 reject",)
        assert await one_pool.rendering.change(one_pool.engines, lambda known: replace(known, rejected=rows))
        assert await seen() == before
        return before

    await stand_in(server_lifetime="86400", server_idle_timeout="0", client_idle_timeout="0.25")
    assert await seen_after_a_reload() == ("86400", "0", "0.25")
    await stand_in(client_idle_timeout=None)
    with busy_clients(one_pool.conninfo(), clients=20) as busy:
        await one_pool.grow(4)
        await one_pool.shrink({one_pool.key(): 1}, within_seconds=BOUND_SECONDS)
        assert (await one_pool.use()).servers == 1
    assert await seen_after_a_reload() == ("86400", "0", "3600")
    await stand_in(server_lifetime=None, server_idle_timeout=None)
    assert await seen_after_a_reload() == ("900", "60", "3600")
    assert busy.errors == []


async def test_login_gate_does_not_stop_a_shrinking(one_pool: LimitedPools) -> None:
    """Connections that are to be kept, and then no longer, while the pool shrinks: it does, and then they last."""
    with busy_clients(one_pool.conninfo(), clients=20) as busy:
        await one_pool.grow(8)
        await one_pool.set(2)
        for lifetime in ("86400", None):
            values = one_pool.rendering.stand_in(one_pool.engine, {LIFETIME: lifetime})
            assert float(values[LIFETIME]) < 1
        await one_pool.shrink({one_pool.key(): 2})
        await until("it shrinks on", lambda: not one_pool.rendering.running(one_pool.engine).shrinking)
        assert (await one_pool.engine.console.show_config())[LIFETIME].value == "900"
    assert busy.errors == []


async def test_limits_can_be_lowered_when_nothing_can_be_written(one_pool: LimitedPools) -> None:
    """A run folder that takes no file does not stop a task from giving connections back."""
    with busy_clients(one_pool.conninfo(), clients=10) as busy:
        await one_pool.grow(6)
        folder = one_pool.settings.engine_path(0)
        folder.rename(folder.with_name("away"))
        folder.touch()  # a file where the folder should be
        await one_pool.shrink({one_pool.key(): 2})
        assert (await one_pool.use()).servers == 2
        folder.unlink()
        folder.with_name("away").rename(folder)
        await one_pool.grow(3)
    assert busy.errors == []


async def test_every_client_waits_for_its_turn_at_the_lowest_limit(one_pool: LimitedPools) -> None:
    """The lowest limit is one connection, whatever is asked for: 0 would mean as many as clients want."""
    await one_pool.set(0)
    with busy_clients(one_pool.conninfo(), clients=10) as busy:
        assert (await one_pool.use()).servers == 1
    assert busy.errors == []
    with psycopg.connect(one_pool.conninfo(), autocommit=True) as client:
        assert client.execute("select 1").fetchone() == (1,)
