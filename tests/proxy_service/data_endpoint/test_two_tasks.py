"""Two tasks behind one balancer: a call finds its transaction wherever it arrives, and no call runs twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emberpool_local.host.ports import free_port
from emberpool_local.lab.balancer import Balancer

from ..conftest import Proxy, wait_until
from ..simulated_aws import simulated_aws
from ..tasks import is_ready
from .served import (
    ARNS,
    as_attempt,
    client,
    endpoint_pid,
    is_serving,
    rows,
    run,
    start_endpoint,
    times_served,
)

HOSTS = ("127.0.0.2", "127.0.0.3")
PASSED_TO_CHILDREN = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass
class TwoTasks:
    """Two tasks of one fleet with one authority, and the balancer before their data endpoints."""

    tasks: tuple[Proxy, ...]
    balancer: Balancer

    def client(self, **config: Any) -> Any:
        """Return boto3's client of the balancer; a connection for each call, so that they go to both in turn."""
        return client(self.tasks[0], port=self.balancer.port, **config)

    def client_of(self, task: int, **config: Any) -> Any:
        """Return a client of one task."""
        return client(self.tasks[task], host=HOSTS[task], **config)


@pytest.fixture
def two_tasks(make_proxy: Callable[..., Proxy]) -> Iterator[TwoTasks]:
    """Two tasks that know each other."""
    client_port, health_port, data_port = free_port(), free_port(), free_port()
    with simulated_aws() as aws, Balancer() as balancer:
        shared = {
            "client_port": client_port,
            "health_port": health_port,
            "data_port": data_port,
            "client_tls_host_names": ",".join(("localhost", *HOSTS)),
            "client_ca_secret_arn": aws.secret(f"ca-{data_port}", {"placeholder": "x"}),
            "fleet_members": ",".join(f"{host}:{health_port}" for host in HOSTS),
            "fleet_check_seconds": 0.2,
        }
        tasks = tuple(
            start_endpoint(make_proxy, pass_on=PASSED_TO_CHILDREN, listen_host=host, **shared) for host in HOSTS
        )
        for host, task in zip(HOSTS, tasks, strict=True):
            wait_until("a task is not ready", lambda task=task: is_ready(task))
            balancer.add((host, data_port, health_port))
        yield TwoTasks(tasks, balancer)


def test_transaction_is_found_from_either_task(two_tasks: TwoTasks) -> None:
    """A transaction that one task began goes on, and ends, through the other."""
    one, other = two_tasks.client_of(0), two_tasks.client_of(1)
    run(one, "create table if not exists shared (n int)")
    transaction = one.begin_transaction(**ARNS)["transactionId"]
    for data, number in ((other, 1), (one, 2), (other, 3)):
        run(data, f"insert into shared values ({number})", transactionId=transaction)
    assert rows(other, "select count(*) from shared", transactionId=transaction) == [[3]]
    assert rows(other, "select count(*) from shared") == [[0]]
    with pytest.raises(ClientError, match="22012"):  # a typed error of the other task is passed on as it is
        run(other, "select 1 / 0", transactionId=transaction)
    assert other.rollback_transaction(transactionId=transaction, **ARNS)["transactionStatus"] == "Rollback Complete"
    with pytest.raises(other.exceptions.TransactionNotFoundException):
        run(other, "select 1", transactionId=transaction)


def test_transactions_through_the_balancer_end_where_they_began(two_tasks: TwoTasks) -> None:
    """Ten transactions of three calls each, whose connections the balancer spreads, are all committed."""
    run(two_tasks.client(), "create table if not exists spread (n int)")
    for number in range(10):
        transaction = two_tasks.client().begin_transaction(**ARNS)["transactionId"]
        run(two_tasks.client(), f"insert into spread values ({number})", transactionId=transaction)
        two_tasks.client().commit_transaction(transactionId=transaction, **ARNS)
    assert rows(two_tasks.client(), "select count(*), count(distinct n) from spread") == [[10, 10]]


def test_transaction_of_a_task_that_is_gone_is_not_found(two_tasks: TwoTasks) -> None:
    """The answer is clear and comes at once, and the transaction has left nothing."""
    one, other = two_tasks.client_of(0), two_tasks.client_of(1)
    run(one, "create table if not exists gone (n int)")
    transaction = one.begin_transaction(**ARNS)["transactionId"]
    run(one, "insert into gone values (1)", transactionId=transaction)
    kill(two_tasks.tasks[0])
    with pytest.raises(other.exceptions.TransactionNotFoundException):
        run(other, "insert into gone values (2)", transactionId=transaction)
    assert rows(other, "select count(*) from gone") == [[0]]


def test_id_that_names_a_stranger_leads_nowhere(two_tasks: TwoTasks) -> None:
    """Only tasks of the fleet are asked, whatever an id says."""
    from emberpool_proxy.data_endpoint.leases import new_id

    data = two_tasks.client_of(0)
    for stranger in (("192.0.2.1", 443), ("127.0.0.1", 1), ("169.254.169.254", 80)):
        with pytest.raises(data.exceptions.TransactionNotFoundException):
            run(data, "select 1", transactionId=new_id(stranger))


def test_call_that_is_sent_again_to_the_other_task_does_not_run_twice(two_tasks: TwoTasks) -> None:
    """A second attempt with the same invocation id gets the first one's answer, from whichever task has it."""
    one, other = two_tasks.client_of(0), two_tasks.client_of(1)
    run(one, "create table if not exists once_only (n int generated always as identity)")
    insert = "insert into once_only default values returning n"
    for data, attempt in ((one, 1), (other, 2), (one, 3)):
        as_attempt(data, "the-same-call", attempt)
        assert rows(data, insert) == [[1]]
    as_attempt(other, "another-call", 2)  # whose first attempt nobody has seen
    assert rows(other, insert) == [[2]]


def test_call_whose_task_is_gone_is_not_run_again_unless_it_changes_nothing(two_tasks: TwoTasks) -> None:
    """Nobody knows whether its first attempt has run: a write is refused with these words, a read is answered."""
    one, other = two_tasks.client_of(0), two_tasks.client_of(1)
    run(one, "create table if not exists unsure (n int)")
    run(one, "create or replace function sly() returns int language sql as 'insert into unsure values (9) returning n'")
    kill(two_tasks.tasks[0])
    as_attempt(other, "a-write", 2)
    with pytest.raises(ClientError, match="is not known"):
        run(other, "insert into unsure values (1)")
    as_attempt(other, "a-read", 2)
    assert rows(other, "select count(*) from unsure") == [[0]]
    as_attempt(other, "a-read-that-writes", 2)
    with pytest.raises(ClientError, match="25006"):
        run(other, "select sly()")


def test_call_is_not_run_again_when_the_other_endpoint_has_forgotten_it(two_tasks: TwoTasks) -> None:
    """An endpoint that crashed knows no answers any more: it says so, and not that it has not seen the call."""
    one, other = two_tasks.client_of(0), two_tasks.client_of(1)
    run(one, "create table if not exists forgotten (n int)")
    as_attempt(one, "it-has-run", 1)
    run(one, "insert into forgotten values (1)")
    os.kill(endpoint_pid(two_tasks.tasks[0]), signal.SIGKILL)
    wait_until("it is not back", lambda: times_served(two_tasks.tasks[0]) == 2 and is_serving(two_tasks.tasks[0]))
    as_attempt(other, "it-has-run", 3)
    with pytest.raises(ClientError, match="has started again since"):
        run(other, "insert into forgotten values (1)")
    assert rows(other, "select count(*) from forgotten") == [[1]]


def kill(task: Proxy) -> None:
    """End a task without a word, as a machine that fails."""
    for pid in (*task.children(), task.process.pid):
        os.kill(pid, signal.SIGKILL)
    task.process.wait()
