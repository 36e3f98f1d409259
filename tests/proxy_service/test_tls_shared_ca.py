"""One CA for all tasks, and its certificate in the functions' secret: the real calls to a simulated Secrets Manager."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from emberpool_proxy.aws import AWSCURRENT, AwsCalls, SecretVersion
from emberpool_proxy.errors import CertificateUnusable, SecretAlreadyWritten
from emberpool_proxy.tls.authority import Authority, utc_now
from emberpool_proxy.tls.published_ca import PublishedCa
from emberpool_proxy.tls.shared_authority import SharedAuthority

from .simulated_aws import simulated_aws

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = 4
CA = "-----BEGIN CERTIFICATE-----\nnot looked at here\n-----END CERTIFICATE-----\n"
OTHER_CA = CA.replace("not", "never")


@pytest.fixture(scope="module")
def secrets_manager() -> Iterator[Any]:
    """A client of the simulated service; AwsCalls' own children find it by their environment."""
    with simulated_aws() as aws:
        yield aws.client("secretsmanager")


@pytest.fixture
def secret(secrets_manager: Any, request: pytest.FixtureRequest) -> str:
    """The ARN of a new secret with the placeholder that the CDK generates."""
    made = secrets_manager.create_secret(Name=request.node.name[:200], SecretString='{"placeholder": "aB3"}')
    return str(made["ARN"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agents(secrets_manager: Any) -> AsyncIterator[list[AwsCalls]]:
    """The AWS calls of as many tasks, each with a child process of its own."""
    calls = [AwsCalls(linger_seconds=60) for _ in range(AGENTS)]
    yield calls
    await asyncio.gather(*(each.close() for each in calls))


@pytest.fixture
def calls(agents: list[AwsCalls]) -> AwsCalls:
    """Those of one task."""
    return agents[0]


class ReadTogether:
    """Secrets whose first read ends only when everybody else's has: all of them then want to write."""

    def __init__(self, calls: AwsCalls, barrier: asyncio.Barrier) -> None:
        self._calls = calls
        self._barrier: asyncio.Barrier | None = barrier

    async def read_secret(self, arn: str) -> SecretVersion:
        read = await self._calls.read_secret(arn)
        if self._barrier is not None:
            barrier, self._barrier = self._barrier, None
            await barrier.wait()
        return read

    async def put_secret(self, arn: str, value: str, request_token: str) -> None:
        await self._calls.put_secret(arn, value, request_token)

    async def swap_secret(self, arn: str, value: str, request_token: str, replaces: str) -> None:
        await self._calls.swap_secret(arn, value, request_token, replaces)


def versions(client: Any, arn: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.list_secret_version_ids(SecretId=arn, IncludeDeprecated=True)["Versions"]
    return found


def members(client: Any, arn: str, stage: str = AWSCURRENT) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(client.get_secret_value(SecretId=arn, VersionStage=stage)["SecretString"])
    return value


# --- the CA ---


async def test_tasks_that_start_at_once_end_with_one_ca(
    secrets_manager: Any, secret: str, agents: list[AwsCalls]
) -> None:
    """Four agents read the empty secret before any of them writes: all get the CA that was written first."""
    barrier = asyncio.Barrier(AGENTS)
    shared = [SharedAuthority(ReadTogether(each, barrier), secret) for each in agents]
    found = await asyncio.gather(*(each.load() for each in shared))
    assert len({generations[0].certificate_pem for generations in found}) == 1
    assert members(secrets_manager, secret)["authorities"][0]["certificate"] == found[0][0].certificate_pem
    assert len(versions(secrets_manager, secret)) == 2  # the placeholder and the one CA


async def test_task_that_reads_a_stale_secret_does_not_make_a_second_ca(
    secrets_manager: Any, secret: str, calls: AwsCalls
) -> None:
    """A read may still give the version before the last write: the write that follows from it is refused."""
    stale = await calls.read_secret(secret)
    (first,) = await SharedAuthority(calls, secret).load()

    class Stale:
        reads = 0

        async def read_secret(self, arn: str) -> SecretVersion:
            self.reads += 1
            return stale if self.reads < 3 else await calls.read_secret(arn)

        async def put_secret(self, arn: str, value: str, request_token: str) -> None:
            await calls.put_secret(arn, value, request_token)

    late = Stale()
    assert await SharedAuthority(late, secret).load() == (first,)
    assert late.reads == 3


async def test_secret_of_somebody_else_is_left_alone(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """A secret that holds anything else is refused, not overwritten."""
    theirs = '{"username": "shop", "password": "hush"}'
    secrets_manager.put_secret_value(SecretId=secret, SecretString=theirs)
    with pytest.raises(CertificateUnusable, match="must be empty or hold the CA"):
        await SharedAuthority(calls, secret).load()
    assert secrets_manager.get_secret_value(SecretId=secret)["SecretString"] == theirs


# --- its certificate in the functions' secret ---


def client_secret(client: Any, arn: str, password: str = "one") -> None:
    client.put_secret_value(SecretId=arn, SecretString=json.dumps({"username": "function", "password": password}))


def rotate(client: Any, arn: str, password: str, user: str = "function") -> None:
    """What AWS's rotation functions do: a pending version, which becomes the current one."""
    value = json.dumps({"username": user, "password": password})
    pending = client.put_secret_value(SecretId=arn, SecretString=value, VersionStages=["AWSPENDING"])["VersionId"]
    make_current(client, arn, pending)


def make_current(client: Any, arn: str, version_id: str) -> None:
    current = client.get_secret_value(SecretId=arn, VersionStage=AWSCURRENT)["VersionId"]
    client.update_secret_version_stage(
        SecretId=arn, VersionStage=AWSCURRENT, MoveToVersionId=version_id, RemoveFromVersionId=current
    )


async def test_functions_find_the_ca_beside_their_password(
    secrets_manager: Any, secret: str, agents: list[AwsCalls]
) -> None:
    """User and password stay, and the CA is written by one of the agents that all want to, in one version."""
    client_secret(secrets_manager, secret)
    barrier = asyncio.Barrier(AGENTS)
    published = [PublishedCa(ReadTogether(each, barrier), (secret,), 300) for each in agents]
    await asyncio.gather(*(each.publish(CA) for each in published))
    await published[0].publish(CA)
    assert members(secrets_manager, secret) == {"username": "function", "password": "one", "ca_certificate": CA}
    assert len(versions(secrets_manager, secret)) == 3


async def test_rotated_secret_gets_the_ca_again(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """A rotation wrote a version without the CA: it is added to the new password, and a new CA replaces the old."""
    client_secret(secrets_manager, secret)
    published = PublishedCa(calls, (secret,), 300)
    await published.publish(CA)
    rotate(secrets_manager, secret, "two")
    await published.publish(CA)
    assert members(secrets_manager, secret) == {"username": "function", "password": "two", "ca_certificate": CA}


async def test_tasks_with_different_cas_leave_each_others_alone(
    secrets_manager: Any, secret: str, calls: AwsCalls
) -> None:
    """In a change-over both are there, nobody rewrites the other, and the old one goes when no task has it."""
    client_secret(secrets_manager, secret)
    now = 0.0
    old, new = (PublishedCa(calls, (secret,), 300, lambda: now) for _ in range(2))
    await old.publish(CA)
    await new.publish(OTHER_CA)
    both = members(secrets_manager, secret)["ca_certificate"]
    assert both == CA + OTHER_CA
    version = (await calls.read_secret(secret)).version_id
    for now in (300.0, 600.0, 900.0):  # noqa: B007 (the clock)
        await old.publish(CA)
        await new.publish(OTHER_CA)
    assert (await calls.read_secret(secret)).version_id == version
    now = 901.0
    await new.publish(OTHER_CA)
    assert members(secrets_manager, secret)["ca_certificate"] == OTHER_CA


async def test_rotation_in_between_is_not_undone(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """A new password that became current after we had read the old one stays current, and gets the CA."""
    client_secret(secrets_manager, secret)

    class RotatedAfterTheRead:
        def __init__(self, calls: AwsCalls) -> None:
            self._calls = calls
            self.reads = 0

        async def read_secret(self, arn: str) -> SecretVersion:
            read = await self._calls.read_secret(arn)
            self.reads += 1
            if self.reads == 1:
                rotate(secrets_manager, arn, "rotated")
            return read

        async def swap_secret(self, arn: str, value: str, request_token: str, replaces: str) -> None:
            await self._calls.swap_secret(arn, value, request_token, replaces)

    rotated = RotatedAfterTheRead(calls)
    await PublishedCa(rotated, (secret,), 300).publish(CA)
    assert rotated.reads == 2
    assert members(secrets_manager, secret) == {"username": "function", "password": "rotated", "ca_certificate": CA}
    # The version that was prepared from the old password never was the current one.
    labels = [label for each in versions(secrets_manager, secret) for label in each["VersionStages"]]
    assert labels.count(AWSCURRENT) == 1


async def test_user_of_before_the_rotation_stays_known(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """Two users take turns: the CA goes beside the new one, and the one before stays AWSPREVIOUS, allowed to log in."""
    client_secret(secrets_manager, secret)
    published = PublishedCa(calls, (secret,), 300)
    await published.publish(CA)
    rotate(secrets_manager, secret, "two", user="function_clone")
    await published.publish(CA)
    assert members(secrets_manager, secret) == {"username": "function_clone", "password": "two", "ca_certificate": CA}
    assert members(secrets_manager, secret, "AWSPREVIOUS")["username"] == "function"


async def test_pending_password_of_a_rotation_stays_pending(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """While a rotation is under way the CA goes beside the current password only, and the rotation can finish."""
    client_secret(secrets_manager, secret)
    pending = secrets_manager.put_secret_value(
        SecretId=secret, SecretString='{"username": "function", "password": "next"}', VersionStages=["AWSPENDING"]
    )["VersionId"]
    await PublishedCa(calls, (secret,), 300).publish(CA)
    assert members(secrets_manager, secret)["password"] == "one"
    assert members(secrets_manager, secret, "AWSPENDING") == {"username": "function", "password": "next"}
    make_current(secrets_manager, secret, pending)
    assert members(secrets_manager, secret)["password"] == "next"


class KeptRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def test_secret_that_cannot_take_the_ca_is_said_once(
    secrets_manager: Any,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    calls: AwsCalls,
) -> None:
    """Neither another shape nor a missing secret ends anything: one line each, which shows nothing of the value."""
    log = KeptRecords()
    monkeypatch.setattr("emberpool_proxy.log.logger.handlers", [log])  # whatever another test has configured
    secrets_manager.put_secret_value(SecretId=secret, SecretString="hush")
    missing = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:nothing"
    published = PublishedCa(calls, (secret, missing), 300)
    for _ in range(2):
        await published.publish(CA)
    lines = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    assert len(lines) == 2
    assert "has another shape" in lines[0]
    assert "ResourceNotFoundException" in lines[1]
    assert "hush" not in "".join(lines)


async def test_nothing_is_published_while_the_ca_is_unknown(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """With a certificate of a public authority, what functions trust is their own setting."""
    await PublishedCa(calls, (secret,), 300).publish("")
    assert members(secrets_manager, secret) == {"placeholder": "aB3"}


async def test_request_token_says_nothing_of_the_ca_key(secrets_manager: Any, secret: str, calls: AwsCalls) -> None:
    """Version ids are in AWS's audit log; they follow from the version before, and the same token is refused."""
    before = await calls.read_secret(secret)
    await SharedAuthority(calls, secret).load()
    after = await calls.read_secret(secret)
    with pytest.raises(SecretAlreadyWritten):
        await calls.put_secret(secret, "another", after.version_id)
    assert after.version_id != before.version_id
    assert Authority.make(utc_now()).key_pem not in after.text
