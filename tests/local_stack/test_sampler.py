"""The sampler sees what PostgreSQL has, and counts logins exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from emberpool_local.burst.sampler import ConnectionSampler, LoginCounter, count_others, wait_until_quiet
from emberpool_local.errors import PostgresUnavailable
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.server import EmbeddedPostgres


@pytest.fixture(scope="module")
def small_postgres() -> Iterator[EmbeddedPostgres]:
    """A server of our own, as all of its connections are counted; three of the eight are reserved."""
    with EmbeddedPostgres(max_connections=8) as server:
        server.create_role_and_database("app", "secret", "app")
        yield server


@pytest.fixture
def app_conninfo(small_postgres: EmbeddedPostgres) -> str:
    wait_until_quiet(small_postgres.conninfo())
    return small_postgres.conninfo("app", "secret", "app")


def test_sampler_sees_connections_come_and_go(small_postgres: EmbeddedPostgres, app_conninfo: str) -> None:
    """The time line has the connections of others, not the sampler's, and its zero is where the clock started."""
    with ConnectionSampler(small_postgres.conninfo()) as sampler:
        wait_until("nothing was sampled", lambda: len(sampler.samples) > 0)
        time.sleep(0.002)  # times are to the millisecond
        sampler.start_clock()
        with psycopg.connect(app_conninfo), psycopg.connect(app_conninfo):
            wait_until("two connections were not seen", lambda: sampler.samples[-1].server_connections == 2)
        wait_until("their end was not seen", lambda: sampler.samples[-1].server_connections == 0)
    assert sampler.samples[0].seconds < 0 < sampler.samples[-1].seconds
    assert max(sample.server_connections for sample in sampler.samples) == 2


def test_only_connections_that_were_let_in_are_counted(small_postgres: EmbeddedPostgres, app_conninfo: str) -> None:
    """Refused logins and the superuser's are not connections opened, also when refused after the password."""
    logins = LoginCounter(small_postgres.log_path, small_postgres.conninfo())
    opened = refused = 0
    with ExitStack() as connections:
        connections.enter_context(psycopg.connect(small_postgres.conninfo()))
        for _ in range(9):
            try:
                connections.enter_context(psycopg.connect(app_conninfo))
                opened += 1
            except psycopg.OperationalError:
                refused += 1
        assert opened == 4
        assert refused == 5
    wait_until_quiet(small_postgres.conninfo())
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(app_conninfo, password="wrong")
    assert logins.count() == 4


def test_quiet_means_that_nobody_else_is_connected(small_postgres: EmbeddedPostgres, app_conninfo: str) -> None:
    """Waiting ends with the last connection, or with an error that says how many are left."""
    with psycopg.connect(app_conninfo):
        assert count_others(small_postgres.conninfo()) == 1
        wait_until_quiet(small_postgres.conninfo(), server_connections=1, timeout_seconds=0.0)
        with pytest.raises(PostgresUnavailable, match="1 connections were still open"):
            wait_until_quiet(small_postgres.conninfo(), timeout_seconds=0.1)
    wait_until_quiet(small_postgres.conninfo())


def test_sampler_says_that_the_server_went_away() -> None:
    """A burst during which PostgreSQL ended has no time line to be believed."""
    with EmbeddedPostgres(max_connections=8) as server:
        sampler = ConnectionSampler(server.conninfo()).__enter__()
        wait_until("nothing was sampled", lambda: len(sampler.samples) > 0)
        server.stop("immediate")
        wait_until("the sampler did not notice", lambda: not sampler.is_running)
    with pytest.raises(PostgresUnavailable, match="could not be counted"):
        sampler.__exit__(None, None, None)
