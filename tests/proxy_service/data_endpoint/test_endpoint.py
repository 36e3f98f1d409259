"""The data endpoint as deployed: boto3's own client, TLS, the whole task behind it."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from emberpool_local.postgres.server import EmbeddedPostgres

from ..conftest import DATABASE, Proxy, wait_until
from .served import ARNS, as_attempt, client, endpoint_pid, is_serving, rows, run, start_endpoint, times_served

TABLE = "create table if not exists kept (id bigint generated always as identity primary key, what text)"


@pytest.fixture(scope="module")
def proxy(make_shared_proxy: Callable[..., Proxy]) -> Proxy:
    """A proxy whose endpoint all tests of this module share."""
    return start_endpoint(make_shared_proxy)


@pytest.fixture(scope="module")
def data(proxy: Proxy) -> Any:
    """boto3's client of it."""
    made = client(proxy)
    run(made, TABLE)
    return made


@pytest.fixture
def superuser(database: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """What the database says."""
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as connection:
        yield connection


def error_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return the kind and the message of the error that a call ends with."""
    with pytest.raises(ClientError) as raised:
        call()
    return raised.value.response["Error"]["Code"], raised.value.response["Error"]["Message"]


def test_transaction_that_is_committed_is_there_and_one_that_is_rolled_back_is_not(data: Any) -> None:
    """Begin, Execute, Commit and Rollback do what they are called."""
    for end, found in ((data.commit_transaction, 1), (data.rollback_transaction, 0)):
        transaction = data.begin_transaction(**ARNS)["transactionId"]
        name = f"by {end.__name__}"
        insert = "insert into kept (what) values (:what)"
        parameters = [{"name": "what", "value": {"stringValue": name}}]
        assert run(data, insert, transactionId=transaction, parameters=parameters)["numberOfRecordsUpdated"] == 1
        end(transactionId=transaction, **ARNS)
        assert rows(data, "select count(*) from kept where what = :what", parameters=parameters) == [[found]]


def test_batch_is_all_or_nothing(data: Any) -> None:
    """One wrong set of parameters leaves nothing of the others."""
    sets = [[{"name": "n", "value": {"stringValue": text}}] for text in ("1", "2", "x")]
    kind, message = error_of(
        lambda: data.batch_execute_statement(
            sql="insert into kept (what) values ((:n::int)::text)", parameterSets=sets, **ARNS
        )
    )
    assert kind == "DatabaseErrorException"
    assert "22P02" in message
    assert rows(data, "select count(*) from kept where what in ('1', '2')") == [[0]]


def test_name_without_a_parameter_is_said_by_its_name(data: Any) -> None:
    """It is the request that is wrong, and the message says which name."""
    kind, message = error_of(lambda: run(data, "select * from kept where what = :what and id = :id"))
    assert (kind, message) == ("BadRequestException", "Cannot find parameter: what")


def test_hundred_callers_at_once_stay_within_the_budget(data: Any, proxy: Proxy, superuser: Any) -> None:
    """The endpoint's sessions are PgBouncer's clients: the database sees no more than the pool's connections."""
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            query = "select count(*) from pg_stat_activity where datname = %s and usename = 'pool'"
            most = max(most, superuser.execute(query, [DATABASE]).fetchone()[0])
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    many = client(proxy, max_pool_connections=50)
    with concurrent.futures.ThreadPoolExecutor(50) as callers:
        answers = list(callers.map(lambda n: rows(many, f"select {n}, pg_sleep(0.02)::text"), range(200)))
    done.set()
    watching.join()
    assert [answer[0][0] for answer in answers] == list(range(200))
    assert most <= int(proxy.setting("max_server_connections"))


def test_client_that_goes_away_leaves_no_statement(data: Any, proxy: Proxy, superuser: Any) -> None:
    """A statement whose client has hung up is cancelled in the database."""
    impatient = client(proxy, read_timeout=1)
    with pytest.raises(Exception, match="Read timeout"):
        run(impatient, "select pg_sleep(20), 'left alone'::text")
    running = """
        select count(*) from pg_stat_activity
        where query like '%left alone%' and state = 'active' and pid <> pg_backend_pid()
    """
    wait_until("the statement goes on", lambda: superuser.execute(running).fetchone()[0] == 0)
    assert rows(data, "select 1") == [[1]]


def test_statement_that_takes_too_long_is_cancelled(make_proxy: Callable[..., Proxy]) -> None:
    """The limit is the setting's, the error the service's own."""
    proxy = start_endpoint(make_proxy, data_statement_seconds=0.5)
    kind, message = error_of(lambda: run(client(proxy), "select pg_sleep(10)"))
    assert kind == "StatementTimeoutException", message


def test_nobody_is_let_in_without_the_password(proxy: Proxy, data: Any) -> None:
    """A wrong password and an unknown user get the same error, and hear nothing of each other."""
    wrong = error_of(lambda: run(client(proxy, password="wrong"), "select 1"))
    unknown = error_of(lambda: run(client(proxy, user="nobody"), "select 1"))
    assert wrong == unknown
    assert wrong[0] == "AccessDeniedException"
    assert "wrong" not in proxy.printed()
    assert rows(data, "select 1") == [[1]]


def test_half_open_connections_keep_nobody_out(proxy: Proxy, data: Any) -> None:
    """A thousand connections that say nothing, or half a request, cost the others nothing but memory."""
    port = int(proxy.setting("data_port"))
    held = []
    try:
        for number in range(1000):
            half_open = socket.create_connection(("127.0.0.1", port))
            if number % 2:
                half_open.send(b"\x16\x03\x01")  # the first bytes of a handshake
            held.append(half_open)
        assert rows(client(proxy), "select 2") == [[2]]
    finally:
        for half_open in held:
            half_open.close()
    assert rows(data, "select 1") == [[1]]


def test_endpoint_that_crashes_is_started_again(make_proxy: Callable[..., Proxy]) -> None:
    """A killed endpoint is back at once, and the pool's other clients have not noticed."""
    proxy = start_endpoint(make_proxy)
    data = client(proxy, retries={"total_max_attempts": 8, "mode": "standard"})
    assert rows(data, "select 1") == [[1]]
    with psycopg.connect(proxy.conninfo()) as other:
        os.kill(endpoint_pid(proxy), signal.SIGKILL)
        assert other.execute("select 1").fetchone() == (1,)
        wait_until("it is not back", lambda: times_served(proxy) == 2 and is_serving(proxy))
        assert rows(data, "select 1") == [[1]]


def test_call_that_may_have_run_before_a_crash_is_not_run_again(make_proxy: Callable[..., Proxy]) -> None:
    """A second attempt right after a crash changes nothing, and says why; one that only reads is answered."""
    proxy = start_endpoint(make_proxy)
    data = client(proxy)
    run(data, TABLE)
    os.kill(endpoint_pid(proxy), signal.SIGKILL)
    wait_until("it is not back", lambda: times_served(proxy) == 2 and is_serving(proxy))
    insert = "insert into kept (what) values ('again')"
    as_attempt(data, "a-write", 4)
    assert "is not known" in error_of(lambda: run(data, insert))[1]
    as_attempt(data, "a-read", 4)
    assert rows(data, "select count(*) from kept where what = 'again'") == [[0]]
    as_attempt(data, "a-first-attempt", 1)
    assert run(data, insert)["numberOfRecordsUpdated"] == 1


def test_stopped_task_loses_no_call(make_proxy: Callable[..., Proxy]) -> None:
    """Calls and a transaction that are under way when the task is told to stop have their answers."""
    proxy = start_endpoint(make_proxy, drain_seconds=10)
    data = client(proxy)
    run(data, TABLE)
    transaction = data.begin_transaction(**ARNS)["transactionId"]
    with concurrent.futures.ThreadPoolExecutor(1) as caller:
        slow = caller.submit(rows, data, "select 1, pg_sleep(1.5)::text")
        time.sleep(0.3)
        proxy.terminate()
        run(data, "insert into kept (what) values ('while stopping')", transactionId=transaction)
        assert (
            data.commit_transaction(transactionId=transaction, **ARNS)["transactionStatus"] == "Transaction Committed"
        )
        assert slow.result() == [[1, ""]]
    wait_until("the task did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 0, proxy.printed()
    with pytest.raises(EndpointConnectionError):
        run(client(proxy), "select 1")
