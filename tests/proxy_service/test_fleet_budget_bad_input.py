"""Budgets that cannot hold are refused at the start, with the figures and the next step, and nothing is served."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.settings import ProxySettings, SettingsInvalid

from .conftest import (
    CLIENT_PASSWORD,
    CLIENT_USER,
    DATABASE,
    DATABASE_PASSWORD,
    DATABASE_USER,
    Proxy,
    wait_until,
)

MakeProxy = Callable[..., Proxy]
FAILED, USAGE = 1, 2
FLEET = {"max_server_connections": 40, "most_tasks_alive": 4}
ROLE_WITHOUT = "role_without_rights"


def refusal_of(proxy: Proxy, code: int) -> str:
    """Wait until the proxy has ended with this code; return its one ERROR line."""
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert "Traceback" not in proxy.printed()
    assert proxy.exit_code() == code
    errors = [line["message"] for line in proxy.log_lines() if line["level"] == "ERROR"]
    assert len(errors) == 1, errors
    assert DATABASE_PASSWORD not in proxy.printed()
    return errors[0]


def test_budget_below_the_floors_is_refused_with_the_sum(make_proxy: MakeProxy) -> None:
    """The line shows tasks x (floor + the agent's own), what that makes, and the budget."""
    proxy = make_proxy(max_server_connections=20, most_tasks_alive=6, floor_connections=2).start()
    line = refusal_of(proxy, USAGE)
    assert "6 x (EMBERPOOL_PROXY_FLOOR_CONNECTIONS 2 + 2 of its agent) = 24" in line
    assert "EMBERPOOL_PROXY_MAX_SERVER_CONNECTIONS is 20" in line


def test_budget_of_just_the_floors_is_allowed() -> None:
    """There is nothing to share then, but nothing wrong either."""
    given = {
        "database_host": "127.0.0.1",
        "database_name": DATABASE,
        "database_user": DATABASE_USER,
        "database_password": DATABASE_PASSWORD,
        "client_user": CLIENT_USER,
        "client_password": CLIENT_PASSWORD,
        "most_tasks_alive": 6,
        "floor_connections": 2,
    }
    assert ProxySettings(**given, max_server_connections=24).shared_slots == 0
    with pytest.raises(SettingsInvalid, match="below the floors"):
        ProxySettings(**given, max_server_connections=23)


def test_database_with_less_room_than_the_floors_is_refused(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """What max_connections leaves beside the reserved ones is shown beside the floors' sum."""
    proxy = make_proxy(
        max_server_connections=200, most_tasks_alive=40, floor_connections=2, reserved_connections=15
    ).start()
    line = refusal_of(proxy, FAILED)
    assert f"leaves {database.max_connections - 15} connections" in line
    assert "40 tasks x (2 + 2) = 160" in line


def test_pooler_in_between_is_refused(make_proxy: MakeProxy) -> None:
    """Locks do not stay with who took them behind a pooler: the line says so and names the setting."""
    pooler = make_proxy().start_ready()
    proxy = make_proxy(
        database_host="127.0.0.1",
        database_port=pooler.setting("client_port"),
        database_user=CLIENT_USER,
        database_password=CLIENT_PASSWORD,
        client_user="another_function",
        server_tls_mode="require",
        **FLEET,
    ).start()
    line = refusal_of(proxy, FAILED)
    assert "is reached through a pooler" in line
    assert "EMBERPOOL_PROXY_DATABASE_HOST" in line


def test_role_that_may_not_lock_is_refused_with_the_grant(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """The line is a statement that a superuser can copy."""
    name = "locked_down"
    database.create_role_and_database(ROLE_WITHOUT, DATABASE_PASSWORD, name)
    with psycopg.connect(database.conninfo(database=name), autocommit=True) as admin:
        admin.execute("revoke execute on function pg_try_advisory_lock(integer, integer) from public")
    proxy = make_proxy(database_name=name, database_user=ROLE_WITHOUT, **FLEET).start()
    line = refusal_of(proxy, FAILED)
    assert f'grant execute on function pg_try_advisory_lock(integer,integer) to "{ROLE_WITHOUT}"' in line


def test_budget_of_a_task_that_is_alone_needs_no_control_connection(
    make_proxy: MakeProxy, database: EmbeddedPostgres
) -> None:
    """With most_tasks_alive at 1 the whole budget is the task's, and nothing is locked."""
    proxy = make_proxy(max_server_connections=7).start_ready()
    with psycopg.connect(proxy.conninfo()) as client, psycopg.connect(database.conninfo(database=DATABASE)) as admin:
        client.execute("select 1")
        names = admin.execute("select application_name from pg_stat_activity where datname = %s", [DATABASE]).fetchall()
        locks = admin.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchall()
    assert not [name for (name,) in names if name.startswith("emberpool-agent")]
    assert locks == [(0,)]
    assert proxy.get("/status")[1]["limits"]["max_server_connections"] == 7
