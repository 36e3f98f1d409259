"""The drain of a real task: whom it closes, whom it waits for, whom it still lets in, and what it withdraws."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterator

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from emberpool_proxy.agent.registration import METADATA_VARIABLE, Registration
from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.settings import ProxySettings, variable

from .conftest import Proxy, wait_until
from .simulated_aws import SimulatedAws, simulated_aws

MakeProxy = Callable[..., Proxy]
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def is_closed(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether the other side has closed it; nothing is sent to find out."""
    poller = select.poll()
    poller.register(connection.pgconn.socket, select.POLLRDHUP)
    return any(event & GONE for _, event in poller.poll(0))


def test_idle_clients_are_closed_and_transactions_are_not(make_proxy: MakeProxy) -> None:
    """While one client's transaction goes on, the idle ones are closed one by one; then it commits and all ends."""
    proxy = make_proxy(drain_seconds=2).start_ready()
    idle = [psycopg.connect(proxy.conninfo(), autocommit=True) for _ in range(10)]
    for connection in idle:
        connection.execute("select 1")
    with psycopg.connect(proxy.conninfo(), autocommit=True) as busy:
        busy.execute("begin")
        busy.execute("create table drained (id int)")
        proxy.terminate()
        wait_until("no idle client was closed", lambda: any(map(is_closed, idle)))
        wait_until("an idle client was left", lambda: all(map(is_closed, idle)))
        assert proxy.exit_code() is None
        busy.execute("insert into drained values (1)")
        assert busy.execute("select count(*) from drained").fetchone() == (1,)
        busy.execute("drop table drained")
        busy.execute("commit")
        wait_until("the drain did not end with the transaction", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 0, proxy.printed()
    for connection in idle:
        with pytest.raises(psycopg.OperationalError, match="client_idle_timeout|server closed"):
            connection.execute("select 1")


def test_new_clients_are_served_until_the_balancer_has_noticed(make_proxy: MakeProxy) -> None:
    """After `/readyz` has turned 503, a client that still arrives is let in and served, and nobody is closed yet."""
    proxy = make_proxy(balancer_notice_seconds=2, drain_seconds=0.5).start_ready()
    with psycopg.connect(proxy.conninfo(), autocommit=True) as early:
        early.execute("select 1")
        proxy.terminate()
        wait_until("readyz did not turn 503", lambda: proxy.status("/readyz") == 503)
        assert proxy.get("/readyz")[1]["reason"] == "draining"
        with psycopg.connect(proxy.conninfo(), autocommit=True) as late:
            assert late.execute("select 1").fetchone() == (1,)
            assert early.execute("select 1").fetchone() == (1,)
            wait_until("the late client was not closed in its turn", lambda: is_closed(late) and is_closed(early))
    wait_until("the drain did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 0, proxy.printed()


@pytest.fixture
def aws() -> Iterator[SimulatedAws]:
    with simulated_aws() as aws:
        yield aws


@pytest.fixture
async def task_metadata(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What ECS tells a container of its task; the fixture's value sets the TaskARN that it answers with."""
    answer = {"TaskARN": ""}
    app = web.Application()
    app.router.add_get("/v4/secret-part/task", lambda _: _json(answer))
    async with TestServer(app) as server:
        monkeypatch.setenv(METADATA_VARIABLE, str(server.make_url("/v4/secret-part")))
        yield lambda arn: answer.update(TaskARN=arn)


async def _json(answer: dict[str, str]) -> web.Response:
    return web.json_response(answer)


def settings_of(proxy: Proxy) -> ProxySettings:
    return ProxySettings.from_environment(proxy.environment)


async def test_task_leaves_its_cloud_map_service(
    make_proxy: MakeProxy, aws: SimulatedAws, task_metadata: Callable[[str], None]
) -> None:
    """The instance that bears this task's id is withdrawn, and no other."""
    discovery = aws.client("servicediscovery")
    namespace = discovery.create_http_namespace(Name="pool")["OperationId"]
    namespace_id = discovery.get_operation(OperationId=namespace)["Operation"]["Targets"]["NAMESPACE"]
    service = discovery.create_service(Name="proxy", NamespaceId=namespace_id)["Service"]["Id"]
    for task, address in (("0123abc", "10.0.0.1"), ("4567def", "10.0.0.2")):
        discovery.register_instance(
            ServiceId=service, InstanceId=task, Attributes={"AWS_INSTANCE_IPV4": address, "AWS_INSTANCE_PORT": "6432"}
        )
    task_metadata("arn:aws:ecs:eu-west-1:123456789012:task/cluster/0123abc")
    calls = AwsCalls()
    try:
        await Registration(settings_of(make_proxy(cloud_map_service_id=service)), calls).withdraw()
    finally:
        await calls.close()
    assert [i["Id"] for i in discovery.list_instances(ServiceId=service)["Instances"]] == ["4567def"]


async def test_failed_withdrawal_is_logged_and_no_more(
    make_proxy: MakeProxy,
    aws: SimulatedAws,
    task_metadata: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the service, without an answer of ECS, off ECS: one warning that says why, and the drain goes on."""
    registration = Registration(settings_of(make_proxy(cloud_map_service_id="srv-none")), calls := AwsCalls())
    task_metadata("arn:aws:ecs:eu-west-1:123456789012:task/cluster/0123abc")
    try:
        await registration.withdraw()
        assert "servicediscovery:DeregisterInstance" in caplog.text
        caplog.clear()
        monkeypatch.setenv(METADATA_VARIABLE, "http://127.0.0.1:1")
        await registration.withdraw()
        assert "metadata" in caplog.text
        caplog.clear()
        monkeypatch.delenv(METADATA_VARIABLE)
        await registration.withdraw()
        assert METADATA_VARIABLE in caplog.text
    finally:
        await calls.close()


def test_notice_and_drain_must_fit_into_the_stop(make_proxy: MakeProxy) -> None:
    """Times that add up to more than the whole stop are refused at start, by name."""
    proxy = make_proxy(balancer_notice_seconds=10, drain_seconds=10, stop_seconds=20).start()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 2
    assert variable("balancer_notice_seconds") in json.loads(proxy.printed().splitlines()[-1])["message"]
