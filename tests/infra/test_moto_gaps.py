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


def test_update_reaches_what_refers_to_the_change(server: MotoServer) -> None:
    """A replaced resource stands before those that refer to it are changed, and the old one is gone afterwards."""

    def template(name: str) -> str:
        cluster = {"Type": "AWS::ECS::Cluster", "Properties": {"ClusterName": name}}
        value = {"Fn::Sub": "of ${Cluster}"}
        named = {"Type": "AWS::SSM::Parameter", "Properties": {"Name": "/which", "Type": "String", "Value": value}}
        return json.dumps({"Resources": {"Named": named, "Cluster": cluster}})

    stacks, ecs, ssm = (server.client(name) for name in ("cloudformation", "ecs", "ssm"))
    stacks.create_stack(StackName="updated", TemplateBody=template("first"))
    version = ssm.get_parameter(Name="/which")["Parameter"]["Version"]
    stacks.update_stack(StackName="updated", TemplateBody=template("second"))
    parameter = ssm.get_parameter(Name="/which")["Parameter"]
    assert (parameter["Value"], parameter["Version"]) == ("of second", version + 1)  # changed in place
    clusters = ecs.describe_clusters(clusters=["first", "second"])["clusters"]
    assert {each["clusterName"]: each["status"] for each in clusters} == {"first": "INACTIVE", "second": "ACTIVE"}


def test_update_that_fails_says_so_and_is_not_tried_again(server: MotoServer) -> None:
    """cdk repeats a request that ended with 500: a half-made update must not look well the second time."""
    parameter = {"Type": "AWS::SSM::Parameter", "Properties": {"Name": "/kept", "Type": "String", "Value": "a"}}
    properties = {"DBInstanceClass": "db.t4g.micro", "Engine": "postgres", "DBSubnetGroupName": "nowhere"}
    resources: dict[str, Any] = {"Kept": parameter}
    stacks = server.client("cloudformation")
    stacks.create_stack(StackName="failing", TemplateBody=json.dumps({"Resources": resources}))
    resources["Db"] = {"Type": "AWS::RDS::DBInstance", "Properties": properties}
    with pytest.raises(ClientError, match=r"the update of failing failed: .*AWS::RDS::DBInstance"):
        stacks.update_stack(StackName="failing", TemplateBody=json.dumps({"Resources": resources}))
    assert stacks.describe_stacks(StackName="failing")["Stacks"][0]["StackStatus"] == "UPDATE_FAILED"


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
