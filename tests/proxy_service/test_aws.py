"""The proxy's AWS calls, made by its child against moto's server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.errors import AwsCallFailed, SecretAlreadyWritten, SecretUnreadable

from ..processes import children_of, command_line
from .simulated_aws import REGION, SimulatedAws, login, simulated_aws

PASSWORD = "hush-password"


@pytest.fixture(scope="module")
def aws() -> Iterator[SimulatedAws]:
    with simulated_aws() as running:
        yield running


@pytest.fixture
async def calls(aws: SimulatedAws) -> AsyncIterator[AwsCalls]:
    made = AwsCalls()
    yield made
    await made.close()


def children() -> set[int]:
    return {pid for pid in children_of(os.getpid()) if any("aws_call" in word for word in command_line(pid))}


STAGES = ("AWSPREVIOUS", "AWSCURRENT", "AWSPENDING")


async def test_secret_is_read_by_stage(aws: SimulatedAws, calls: AwsCalls) -> None:
    """Each stage gives its own version's text."""
    arn = aws.secret("stages", login("app", "first"))
    aws.put(arn, login("app", "second"))
    aws.put(arn, login("app", "third"), "AWSPENDING")
    found = [json.loads(await calls.get_secret(arn, stage))["password"] for stage in STAGES]
    assert found == ["first", "second", "third"]


async def test_absent_secret_and_stage_are_named_with_aws_own_code(aws: SimulatedAws, calls: AwsCalls) -> None:
    """The error has the ARN, the stage and AWS's code, so that callers can tell absent from unreachable."""
    arn = aws.secret("no-pending", login("app", PASSWORD))
    with pytest.raises(SecretUnreadable, match=r"AWSPENDING.*no-pending.*ResourceNotFoundException") as raised:
        await calls.get_secret(arn, "AWSPENDING")
    assert (raised.value.arn, raised.value.code) == (arn, "ResourceNotFoundException")
    with pytest.raises(SecretUnreadable, match="ResourceNotFoundException"):
        await calls.get_secret(f"arn:aws:secretsmanager:{REGION}:123456789012:secret:none")


async def test_binary_secret_is_refused(aws: SimulatedAws, calls: AwsCalls) -> None:
    """A secret without text is an error that says so, without its content."""
    arn = aws.client("secretsmanager").create_secret(Name="binary", SecretBinary=b"hush")["ARN"]
    with pytest.raises(SecretUnreadable, match="it is binary") as raised:
        await calls.get_secret(arn)
    assert "hush" not in str(raised.value)


async def test_second_writer_with_the_same_token_is_told_so(aws: SimulatedAws, calls: AwsCalls) -> None:
    """One token, one value: repeating it is harmless, another value is SecretAlreadyWritten and changes nothing."""
    arn, token = aws.secret("written-once", "{}"), str(uuid.uuid4())
    await calls.put_secret(arn, PASSWORD, token)
    await calls.put_secret(arn, PASSWORD, token)
    with pytest.raises(SecretAlreadyWritten):
        await calls.put_secret(arn, "another", token)
    assert await calls.get_secret(arn) == PASSWORD


async def test_refused_write_does_not_show_the_value(aws: SimulatedAws, calls: AwsCalls) -> None:
    """Neither AWS's message nor botocore's check of the arguments brings the value into the error."""
    arn = aws.secret("refused-write", "{}")
    for token in ("short", str(uuid.uuid4())):
        with pytest.raises(AwsCallFailed) as raised:
            await calls.put_secret(arn if token == "short" else f"{arn}-absent", PASSWORD, token)
        assert PASSWORD not in str(raised.value)


async def test_rds_token_is_signed_for_the_region_of_the_host(aws: SimulatedAws, calls: AwsCalls) -> None:
    """The token names host, port, user and the host's own region, and is good for 15 minutes."""
    token = await calls.rds_token("db.abc123.us-west-2.rds.amazonaws.com", 5432, "app")
    url = urlsplit(f"//{token}")
    query = parse_qs(url.query)
    assert url.netloc == "db.abc123.us-west-2.rds.amazonaws.com:5432"
    assert (query["Action"], query["DBUser"], query["X-Amz-Expires"]) == (["connect"], ["app"], ["900"])
    assert "/us-west-2/rds-db/aws4_request" in query["X-Amz-Credential"][0]
    assert f"%2F{REGION}%2F" in await calls.rds_token("10.0.0.7", 5432, "app")


async def test_instance_leaves_cloud_map(aws: SimulatedAws, calls: AwsCalls) -> None:
    """A registered instance is gone afterwards; an unknown service is a clear error."""
    cloud_map = aws.client("servicediscovery")
    namespace = cloud_map.create_http_namespace(Name="pool")["OperationId"]
    namespace_id = cloud_map.get_operation(OperationId=namespace)["Operation"]["Targets"]["NAMESPACE"]
    service = cloud_map.create_service(Name="proxy", NamespaceId=namespace_id)["Service"]["Id"]
    cloud_map.register_instance(ServiceId=service, InstanceId="task-1", Attributes={"AWS_INSTANCE_IPV4": "10.0.0.1"})
    await calls.deregister_instance(service, "task-1")
    assert cloud_map.list_instances(ServiceId=service)["Instances"] == []
    with pytest.raises(AwsCallFailed, match="ServiceNotFound"):
        await calls.deregister_instance("srv-none", "task-1")


async def test_calls_share_one_child_that_ends_when_idle(aws: SimulatedAws) -> None:
    """Several calls at once cost one process, and after the last one none is left."""
    arn = aws.secret("shared-child", login("app", PASSWORD))
    calls = AwsCalls(linger_seconds=0.05)
    before = children()
    results = asyncio.gather(*(calls.get_secret(arn) for _ in range(8)))
    seen: set[int] = set()
    while not results.done():
        seen |= children() - before
        await asyncio.sleep(0.02)
    assert len(set(await results)) == 1
    assert len(seen) == 1
    async with asyncio.timeout(10):
        while children() - before:  # noqa: ASYNC110 (another process tells nobody)
            await asyncio.sleep(0.02)


async def test_child_that_was_killed_is_replaced(aws: SimulatedAws, calls: AwsCalls) -> None:
    """A call whose child dies fails with a reason; the next one has a new child."""
    arn = aws.secret("killed-child", login("app", PASSWORD))
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        asking = asyncio.create_task(calls.get_secret(arn))
        while not (born := children() - before):  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.01)
        os.kill(born.pop(), 9)
        with pytest.raises(SecretUnreadable, match="ended"):
            await asking
    assert PASSWORD in await calls.get_secret(arn)


async def test_mute_endpoint_ends_within_the_bound(aws: SimulatedAws) -> None:
    """An endpoint that never answers is an error within call_seconds, and no child is left."""
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(SecretUnreadable, match=r"no answer within 0.5 s"):
            await AwsCalls(call_seconds=0.5).get_secret("arn:aws:secretsmanager:eu-west-1:123456789012:secret:mute")
    assert children() == before


def test_agent_never_loads_botocore() -> None:
    """What makes the child worth it: importing the calls leaves botocore out of the agent's process."""
    code = "import emberpool_proxy.aws, sys; print('botocore' in sys.modules or 'boto3' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"
