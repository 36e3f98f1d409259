"""Statements that drivers prepare by the protocol: psycopg's and asyncpg's own, node-postgres' named queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.state_file import AgentState
from emberpool_proxy.pgbouncer.config import AGENT_USER

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER, Proxy
from .drivers.sessions import DRIVERS, Session, StatementFailed

MakeProxy = Callable[..., Proxy]
CLIENTS, SERVERS, ROUNDS = 4, 2, 20
STATEMENTS = 5
TABLE_NUMBERS = itertools.count()
KEPT_BY_PGBOUNCER = 200  # max_prepared_statements
each_driver = pytest.mark.parametrize("driver", DRIVERS)
each_policy = pytest.mark.parametrize("policy", ["tracked", "always"])


@pytest.fixture(scope="module")
def proxies_by_policy(make_shared_proxy: MakeProxy) -> dict[str, Proxy]:
    made = {
        policy: make_shared_proxy(max_server_connections=SERVERS, reset_policy=policy)
        for policy in ("tracked", "always")
    }
    for proxy in made.values():
        proxy.start_ready()
    return made


@pytest.fixture(scope="module")
def proxy_with_one_server(make_shared_proxy: MakeProxy) -> Proxy:
    """With one server connection: node-postgres tells of an error before that is free, and would be given another."""
    return make_shared_proxy(max_server_connections=1).start_ready()


@pytest.fixture
def table(database: EmbeddedPostgres) -> str:
    """A table of the test's own with one row and one column."""
    name = f"migrated_{next(TABLE_NUMBERS)}"
    run(database, f"create table {name} as select 1 as a")
    return name


def run(database: EmbeddedPostgres, statement: str) -> None:
    """Run a statement as a migration does: past the proxy."""
    with psycopg.connect(database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE), autocommit=True) as owner:
        owner.execute(statement.encode())


def reconnect(proxy: Proxy) -> None:
    """Replace the server connections, each when its transaction has ended."""
    folder = Path(proxy.setting("run_folder"))
    password = AgentState.read(folder).agent_password
    with psycopg.connect(
        host=str(folder / "0"), port=proxy.setting("client_port"), user=AGENT_USER, password=password,
        dbname="pgbouncer", autocommit=True,
    ) as console:  # fmt: skip
        console.execute("RECONNECT", prepare=False)


def backends_seen(session: Session) -> set[int]:
    seen = set()
    for round_ in range(ROUNDS):
        for number in range(STATEMENTS):
            ((total, backend, _),) = session.rows(
                f"select {number} + {{}}::int, pg_backend_pid(), pg_sleep(0.001)", round_
            )
            assert total == number + round_
            seen.add(backend)
    return seen


@each_policy
@each_driver
def test_prepared_statements_work_over_fewer_servers_than_clients(
    proxies_by_policy: dict[str, Proxy], driver: str, policy: str
) -> None:
    """Every client gets its own statements' results, whichever server connection serves it."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(DRIVERS[driver](proxies_by_policy[policy])) for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as threads:
            seen = set().union(*threads.map(backends_seen, sessions))
    assert len(seen) == SERVERS


def test_statements_are_prepared_once_for_all_clients(proxies_by_policy: dict[str, Proxy]) -> None:
    """Two clients that prepare the same text share one prepared statement of a server connection."""
    proxy = proxies_by_policy["tracked"]
    statement = "select {}::int + 12345"
    look = "select name from pg_prepared_statements where starts_with(statement, 'select $1::int + 12345') and {} = 1"
    with DRIVERS["psycopg"](proxy) as first, DRIVERS["psycopg"](proxy) as second:
        for session in (first, second, first):
            assert session.rows(statement, 1) == [[12346]]
        named = first.rows(look, 1)
    assert len(named) == 1


def test_more_statements_than_pgbouncer_keeps(proxies_by_policy: dict[str, Proxy]) -> None:
    """Statements beyond what PgBouncer keeps prepared are prepared again when they are used again."""
    with DRIVERS["asyncpg"](proxies_by_policy["tracked"]) as session:
        for _ in range(2):
            for number in range(KEPT_BY_PGBOUNCER + 20):
                assert session.rows(f"select {{}}::int + {number}", 1) == [[number + 1]]


@each_driver
def test_changed_result_type_fails_until_the_servers_are_replaced(
    proxy_with_one_server: Proxy, database: EmbeddedPostgres, table: str, driver: str
) -> None:
    """A prepared statement whose columns a migration changed fails, for new clients too, until a RECONNECT."""
    proxy, statement = proxy_with_one_server, f"select * from {table} where {{}} = 1"
    with DRIVERS[driver](proxy) as old, DRIVERS[driver](proxy) as new:
        assert old.rows(statement, 1) == [[1]]
        run(database, f"alter table {table} add column b int default 2")
        for session in (old, old, new):
            with pytest.raises(StatementFailed, match="0A000: cached"):
                session.rows(statement, 1)
        assert new.rows(f"select a from {table} where {{}} = 1", 1) == [[1]]
        reconnect(proxy)
        for session in (old, new):
            assert session.rows(statement, 1) == [[1, 2]]


@pytest.mark.parametrize("driver", ["psycopg", "node-postgres"])
def test_reset_sessions_follow_a_changed_result_type(
    proxies_by_policy: dict[str, Proxy], database: EmbeddedPostgres, table: str, driver: str
) -> None:
    """With `always` the statement is prepared anew after the migration: nobody sees an error."""
    statement = f"select * from {table} where {{}} = 1"
    with DRIVERS[driver](proxies_by_policy["always"]) as session:
        assert session.rows(statement, 1) == [[1]]
        run(database, f"alter table {table} add column b int default 2")
        assert session.rows(statement, 1) == [[1, 2]]
