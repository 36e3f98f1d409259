"""The whole proxy and its logins: secrets that rotate under load, wrong passwords, pools that nobody uses."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from emberpool_local.postgres.server import EmbeddedPostgres

from ..processes import children_of
from .conftest import (
    CLIENT_PASSWORD,
    CLIENT_USER,
    DATABASE,
    DATABASE_PASSWORD,
    DATABASE_USER,
    Proxy,
    wait_until,
)
from .simulated_aws import SimulatedAws, login, simulated_aws

MakeProxy = Callable[..., Proxy]
CLIENTS = 20
# Secrets Manager by way of the proxy's own child: it needs these in its environment.
AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_EC2_METADATA_DISABLED",
)


@pytest.fixture(scope="module")
def aws() -> Iterator[SimulatedAws]:
    with simulated_aws() as simulated:
        yield simulated


@pytest.fixture
def rotate(database: EmbeddedPostgres) -> Iterator[Callable[[str], None]]:
    """Changes the role's password in the database; afterwards it is the old one again."""

    def change(password: str) -> None:
        with psycopg.connect(database.conninfo(), autocommit=True) as admin:
            admin.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(DATABASE_USER), password))

    yield change
    change(DATABASE_PASSWORD)


def pools_connections(database: EmbeddedPostgres) -> list[tuple[str, str]]:
    """Everything that the proxy holds in the database: user and application name."""
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        return admin.execute(
            "select usename, application_name from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
            (DATABASE,),
        ).fetchall()


@contextmanager
def load(proxy: Proxy, clients: int = CLIENTS) -> Iterator[tuple[list[int], list[Exception]]]:
    """Clients that run short transactions; yields how many each has done, and what failed."""
    done = [0] * clients
    failed: list[Exception] = []
    stop = threading.Event()

    def client(number: int) -> None:
        try:
            with psycopg.connect(proxy.conninfo()) as connection:
                while not stop.is_set():
                    with connection.transaction():
                        connection.execute("select pg_sleep(0.005)")
                    done[number] += 1
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield done, failed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_rotated_database_secret_fails_no_client(
    make_proxy: MakeProxy, aws: SimulatedAws, rotate: Callable[[str], None]
) -> None:
    """The role's password changes first and the secret later; the connections that the load needs meanwhile wait."""
    arn = aws.secret(f"database-{secrets.token_hex(4)}", login(DATABASE_USER, DATABASE_PASSWORD))
    proxy = make_proxy(
        database_secret_arn=arn, database_user="", database_password="", query_wait_seconds=20, pass_on=AWS_VARIABLES
    ).start_ready()
    with load(proxy, 1) as (done, failed):
        wait_until("the first client did not start", lambda: all(done))
        new = secrets.token_urlsafe(24)
        rotate(new)
        with load(proxy) as (many_done, many_failed):
            wait_until("the proxy needed no new login", lambda: "password authentication failed" in proxy.printed())
            aws.put(arn, login(DATABASE_USER, new))
            wait_until(
                "the clients did not go on with the new password",
                lambda: failed or many_failed or all(count > 20 for count in many_done),
                timeout=40,
            )
    assert (failed, many_failed) == ([], [])
    assert new not in proxy.printed()


def test_secret_that_rotated_while_nobody_worked_fails_no_client(
    make_proxy: MakeProxy, aws: SimulatedAws, rotate: Callable[[str], None]
) -> None:
    """The pool is empty, the password is another one, and the first client that comes is served."""
    arn = aws.secret(f"database-{secrets.token_hex(4)}", login(DATABASE_USER, DATABASE_PASSWORD))
    proxy = make_proxy(
        database_secret_arn=arn,
        database_user="",
        database_password="",
        server_idle_seconds=1,
        query_wait_seconds=20,
        pass_on=AWS_VARIABLES,
    ).start_ready()
    wait_until("the pool did not go to sleep", lambda: proxy.get("/status")[1]["database"]["asleep"])
    new = secrets.token_urlsafe(24)
    aws.put(arn, login(DATABASE_USER, new))
    rotate(new)
    with psycopg.connect(proxy.conninfo()) as connection:
        assert connection.execute("select current_user").fetchone() == (DATABASE_USER,)


def finish_rotation(aws: SimulatedAws, arn: str, version: str) -> None:
    """Move AWSCURRENT as the last step of a rotation does."""
    client = aws.client("secretsmanager")
    stages = client.describe_secret(SecretId=arn)["VersionIdsToStages"]
    (current,) = (each for each, names in stages.items() if "AWSCURRENT" in names)
    client.update_secret_version_stage(
        SecretId=arn, VersionStage="AWSCURRENT", MoveToVersionId=version, RemoveFromVersionId=current
    )


def test_two_users_are_valid_while_the_clients_secret_rotates(make_proxy: MakeProxy, aws: SimulatedAws) -> None:
    """After a rotation to another user both get in, so that no function has to be restarted."""
    first, second = ({"username": f"function_{which}", "password": secrets.token_urlsafe(32)} for which in "ab")
    arn = aws.secret(f"clients-{secrets.token_hex(4)}", first)
    proxy = make_proxy(
        client_user="",
        client_password="",
        client_secret_arn=arn,
        credentials_check_seconds=1,
        pass_on=AWS_VARIABLES,
    ).start_ready()

    def gets_in(login: dict[str, str]) -> bool:
        try:
            psycopg.connect(proxy.conninfo(user=login["username"], password=login["password"])).close()
        except psycopg.OperationalError:
            return False
        return True

    assert gets_in(first)
    assert not gets_in(second)
    finish_rotation(aws, arn, aws.put(arn, second, "AWSPENDING"))
    wait_until("the new user does not get in", lambda: gets_in(second))
    assert gets_in(first)


def test_what_a_killed_agent_leaves_behind_is_collected(make_proxy: MakeProxy, aws: SimulatedAws) -> None:
    """As a container's first process the supervisor inherits the agent's child; no zombie is left."""
    arn = aws.secret(f"database-{secrets.token_hex(4)}", login(DATABASE_USER, DATABASE_PASSWORD))
    proxy = make_proxy(
        database_secret_arn=arn,
        database_user="",
        database_password="",
        credentials_check_seconds=1,  # its child that asks AWS is always there
        pass_on=AWS_VARIABLES,
    )
    proxy.adopts_orphans = True
    proxy.start_ready()
    agent = proxy.agent_pid()
    orphans = wait_until("the agent has no child", lambda: children_of(agent))
    os.kill(agent, signal.SIGKILL)
    wait_until("the new agent did not attach", lambda: proxy.agent_pid() not in (0, agent))
    wait_until("an orphan was left", lambda: not proxy.children() & {agent, *orphans})
    wait_until("it is not healthy again", lambda: proxy.status("/healthz") == 200)


def test_pool_that_nobody_uses_holds_nothing_in_the_database(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """With clients connected but idle, no connection of the pool's or the agent's is left, until a client works."""
    proxy = make_proxy(server_idle_seconds=1).start_ready()
    with psycopg.connect(proxy.conninfo(), autocommit=True) as idle:
        idle.execute("select 1")
        assert pools_connections(database)
        wait_until("connections to the database were left", lambda: not pools_connections(database))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert pools_connections(database) == []
            time.sleep(0.05)
        assert idle.execute("select 1").fetchone() == (1,)


def test_many_wrong_passwords_are_refused_without_asking(make_proxy: MakeProxy) -> None:
    """Who keeps guessing is refused for a while without being asked; the log names user and address."""
    proxy = make_proxy().start_ready()

    def answer() -> str:
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(proxy.conninfo(password="wrong")).close()
        return str(caught.value)

    assert "SASL authentication failed" in answer()
    wait_until("guessing went on", lambda: "login rejected" in answer(), timeout=30)
    refused = [line for line in proxy.log_lines() if line["message"].startswith("too many wrong passwords")]
    assert [(line["user"], line["address"]) for line in refused] == [(CLIENT_USER, "127.0.0.1")]
    assert CLIENT_PASSWORD not in proxy.printed()
