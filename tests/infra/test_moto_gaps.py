"""What the simulation cannot do is written down: exit code 0 of a deployment alone proves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emberpool_local.aws.moto_process import MotoServer, running_moto
from emberpool_local.host.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """A moto server of ours, without any stack."""
    with running_moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


def _deploy(server: MotoServer, name: str, resources: dict[str, Any]) -> str:
    stacks = server.client("cloudformation")
    stacks.create_stack(StackName=name, TemplateBody=json.dumps({"Resources": resources}))
    status: str = stacks.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
    return status


def test_property_that_no_call_takes_is_recorded(server: MotoServer) -> None:
    """A misspelt property is dropped and shows up as a gap, with its path."""
    settings = [{"Name": "containerInsights", "Value": "enabled", "Colour": "red"}]
    cluster = {"Type": "AWS::ECS::Cluster", "Properties": {"ClusterSettings": settings, "Shape": "round"}}
    assert _deploy(server, "dropped", {"Cluster": cluster}) == "CREATE_COMPLETE"
    dropped = {gap.detail for gap in server.gaps() if (gap.kind, gap.type) == ("dropped", "AWS::ECS::Cluster")}
    assert dropped == {"Shape", "Settings.Colour"}


def test_type_that_nobody_knows_is_recorded(server: MotoServer) -> None:
    """A type without any support shows up as a gap."""
    _deploy(server, "unknown", {"Thing": {"Type": "AWS::Braket::Hybrid", "Properties": {}}})
    wait_until(
        "the unknown type was not recorded",
        lambda: ("unknown", "AWS::Braket::Hybrid") in {(gap.kind, gap.type) for gap in server.gaps()},
    )


def test_request_that_the_service_refuses_fails_the_stack(server: MotoServer) -> None:
    """A template that names a subnet group that does not exist is no success."""
    database = {
        "Type": "AWS::RDS::DBInstance",
        "Properties": {"DBInstanceClass": "db.t4g.micro", "Engine": "postgres", "DBSubnetGroupName": "nowhere"},
    }
    with pytest.raises(ClientError, match=r"Db \(AWS::RDS::DBInstance\): .*[Ss]ubnet ?[Gg]roup"):
        _deploy(server, "refused", {"Db": database})


def test_server_listens_on_loopback_and_ends_with_us(tmp_path: Path) -> None:
    """The server's port is free again after the `with`, and its environment has none of our AWS settings."""
    with running_moto(tmp_path) as running:
        assert running.client("sts").get_caller_identity()["Account"] == "123456789012"
        environment = running.environment()
    assert environment["AWS_ENDPOINT_URL"] == f"http://localhost:{running.port}"
    import socket

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", running.port)) != 0


def test_users_own_credentials_never_reach_the_simulation(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile or a session token in the user's environment is not passed on."""
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-real-one")
    environment = server.environment()
    assert "AWS_PROFILE" not in environment
    assert "AWS_SESSION_TOKEN" not in environment
    assert environment["AWS_ACCESS_KEY_ID"] == "testing"
