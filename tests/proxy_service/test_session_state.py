"""What of a session passes from one client to the next on the same server connection, by reset policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from emberpool_local.postgres.program import wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.session_state import CONNECT_QUERY

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER, Proxy, wait_until

MakeProxy = Callable[..., Proxy]
Connection = psycopg.Connection[Any]
OTHER_ROLE = "other_role"
KEEPALIVES = (
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
    "client_connection_check_interval",
)


@dataclass(frozen=True)
class State:
    """A piece of session state: what makes it, what shows it, what the next client should see, how to undo it."""

    name: str
    make: str
    look: str
    clean: str
    undo: str


# What only `reset_policy = always` keeps from the next client.
LEAKS = (
    State("set", "set statement_timeout = '7s'", "show statement_timeout", "0", "reset statement_timeout"),
    State("search_path", "set search_path = pg_catalog", "show search_path", '"$user", public', "reset search_path"),
    State(
        "set_config",
        "select set_config('app.tenant', '42', false)",
        "select coalesce(current_setting('app.tenant', true), '')",
        "",
        "set app.tenant = ''",
    ),
    State("set role", f"set role {OTHER_ROLE}", "select current_user", DATABASE_USER, "reset role"),
    State(
        "isolation",
        "set session characteristics as transaction isolation level serializable",
        "show default_transaction_isolation",
        "read committed",
        "reset default_transaction_isolation",
    ),
    State(
        "temporary table",
        "create temporary table left_behind (id int)",
        "select coalesce(to_regclass('pg_temp.left_behind')::text, '')",
        "",
        "drop table left_behind",
    ),
    State(
        "advisory lock",
        "select pg_advisory_lock(4711)",
        "select count(*)::text from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        "0",
        "select pg_advisory_unlock(4711)",
    ),
    State("listen", "listen news", "select count(*)::text from pg_listening_channels()", "0", "unlisten news"),
    State(
        "prepare",
        "prepare by_hand as select 1",
        "select count(*)::text from pg_prepared_statements where from_sql",
        "0",
        "deallocate by_hand",
    ),
    State(
        "with hold",
        "begin; declare held cursor with hold for select 1; commit",
        "select count(*)::text from pg_cursors where name = 'held'",
        "0",
        "close held",
    ),
)
# What every policy keeps for each client.
TRACKED = (
    State("time zone", "set time zone 'Asia/Tokyo'", "show timezone", "", ""),
    State("application_name", "set application_name = 'mine'", "show application_name", "", ""),
    State("datestyle", "set datestyle = 'German'", "show datestyle", "", ""),
    State("intervalstyle", "set intervalstyle = 'iso_8601'", "show intervalstyle", "", ""),
    State("client_encoding", "set client_encoding = 'LATIN1'", "show client_encoding", "", ""),
    State("strings", "set standard_conforming_strings = off", "show standard_conforming_strings", "", ""),
    State(
        "read only",
        "set session characteristics as transaction read only",
        "show default_transaction_read_only",
        "",
        "",
    ),
)
by_name = pytest.mark.parametrize("state", LEAKS, ids=lambda state: state.name)


@pytest.fixture(scope="module")
def other_role(database: EmbeddedPostgres) -> None:
    with psycopg.connect(database.conninfo(), autocommit=True) as superuser:
        superuser.execute(f"create role {OTHER_ROLE}")
        superuser.execute(f"grant {OTHER_ROLE} to {DATABASE_USER}")


@pytest.fixture(scope="module")
def tracking_proxy(make_shared_proxy: MakeProxy, other_role: None) -> Proxy:
    return make_shared_proxy(max_server_connections=1).start_ready()


@pytest.fixture(scope="module")
def resetting_proxy(make_shared_proxy: MakeProxy, other_role: None) -> Proxy:
    return make_shared_proxy(max_server_connections=1, reset_policy="always").start_ready()


@pytest.fixture(scope="module")
def modern_postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(program=wheel_postgres()) as server:
        server.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        yield server


def connected(proxy: Proxy) -> Connection:
    # Not prepared: the statement's text is what the server gets.
    return psycopg.connect(proxy.conninfo(), autocommit=True, prepare_threshold=None)


def seen(connection: Connection, look: str) -> str:
    return connection.execute(look.encode()).fetchone()[0]


def make(connection: Connection, state: State) -> None:
    connection.pgconn.exec_(state.make.encode())


@by_name
def test_tracked_policy_hands_on_what_the_docs_name(tracking_proxy: Proxy, state: State) -> None:
    """With the default policy the next client on the server connection finds what this client left."""
    with connected(tracking_proxy) as first, connected(tracking_proxy) as second:
        assert seen(second, state.look) == state.clean
        make(first, state)
        try:
            assert seen(second, state.look) != state.clean
        finally:
            first.execute(state.undo.encode())


@by_name
def test_always_policy_hands_on_nothing(resetting_proxy: Proxy, state: State) -> None:
    """With `always` the next client on the server connection finds a clean session."""
    with connected(resetting_proxy) as first, connected(resetting_proxy) as second:
        make(first, state)
        assert seen(second, state.look) == state.clean
        assert seen(first, state.look) == state.clean


@pytest.mark.parametrize("state", TRACKED, ids=lambda state: state.name)
@pytest.mark.parametrize("policy", ["tracking_proxy", "resetting_proxy"])
def test_tracked_parameter_stays_with_its_client(request: pytest.FixtureRequest, policy: str, state: State) -> None:
    """A tracked parameter has for each client the value that it set, and no other client sees it."""
    proxy = request.getfixturevalue(policy)
    with connected(proxy) as first, connected(proxy) as second:
        before = seen(second, state.look)
        make(first, state)
        assert seen(second, state.look) == before
        own = seen(first, state.look)
        assert own != before
        assert seen(second, state.look) == before
        assert seen(first, state.look) == own


def test_search_path_can_be_tracked_on_postgresql_18(make_proxy: MakeProxy, modern_postgres: EmbeddedPostgres) -> None:
    """PostgreSQL 18 reports search_path: named in tracked_parameters, it stays with the client that set it."""
    proxy = make_proxy(
        database_port=modern_postgres.port, max_server_connections=1, tracked_parameters="IntervalStyle, search_path"
    ).start_ready()
    with connected(proxy) as first, connected(proxy) as second:
        first.execute("set search_path = pg_catalog, public")
        assert seen(second, "show search_path") == '"$user", public'
        assert seen(first, "show search_path") == "pg_catalog, public"
        assert seen(first, "select current_schemas(false)::text") == "{pg_catalog,public}"


@pytest.mark.parametrize("policy", ["tracking_proxy", "resetting_proxy"])
def test_backend_whose_client_vanished_is_ended(
    request: pytest.FixtureRequest, database: EmbeddedPostgres, policy: str
) -> None:
    """A statement does not run on when its client is gone: its backend would be one that nobody counts."""
    proxy = request.getfixturevalue(policy)
    with connected(proxy) as warm:  # a server connection that has already served somebody
        warm.execute("select 1")
    with psycopg.connect(database.conninfo(), autocommit=True) as superuser:
        count = (
            "select count(*) from pg_stat_activity where query like 'select pg_sleep(60)%' and pid <> pg_backend_pid()"
        )
        client = connected(proxy)
        client.pgconn.send_query(b"select pg_sleep(60)")
        client.pgconn.flush()
        wait_until("the statement did not run", lambda: superuser.execute(count).fetchone()[0])
        client.close()
        wait_until("the statement outlived its client", lambda: not superuser.execute(count).fetchone()[0])


@pytest.mark.parametrize("policy", ["tracking_proxy", "resetting_proxy"])
def test_server_soon_notices_a_task_that_vanished(request: pytest.FixtureRequest, policy: str) -> None:
    """A server connection has the keepalives that end its backend before the task's control connection ends."""
    with connected(request.getfixturevalue(policy)) as client:
        for _ in range(2):  # before and after a reset
            found = [seen(client, f"show {name}") for name in KEEPALIVES]
            assert found == ["5", "2", "3", "10000", "50ms"]


def test_connect_query_leaves_out_what_an_older_server_lacks(database: EmbeddedPostgres) -> None:
    """A parameter that the server does not know is no error: PgBouncer could not log in."""
    query = CONNECT_QUERY.replace("tcp_user_timeout", "tcp_unknown_here")
    with psycopg.connect(database.conninfo(), autocommit=True) as superuser:
        assert len(superuser.execute(query.encode()).fetchall()) == len(KEEPALIVES) - 1


def test_idle_transaction_is_ended(make_proxy: MakeProxy) -> None:
    """A transaction that idles for longer than idle_transaction_seconds gives its server connection to others."""
    proxy = make_proxy(max_server_connections=1, idle_transaction_seconds=1).start_ready()
    with psycopg.connect(proxy.conninfo()) as frozen, connected(proxy) as other:
        frozen.execute("select 1")
        assert seen(other, "select 1") == 1
        with pytest.raises(psycopg.OperationalError, match="idle transaction timeout"):
            frozen.execute("select 1")
