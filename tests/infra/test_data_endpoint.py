"""A pool with the data endpoint: its port from the function to the task, and nothing of it without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from tests.infra.conftest import PoolInAStack, Template

from emberpool_cdk import PoolProxy
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, HEALTH_PORT, variable


class Made:
    """A pool with one function, which may send nothing but what `attach` lets it."""

    def __init__(self, folder: Path, **pool: Any) -> None:
        users = PoolInAStack(folder, **pool)
        function = lambda_.Function(
            users.stack,
            "Function",
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.ARM_64,
            handler="index.handler",
            code=lambda_.Code.from_inline("def handler(event, context): ..."),
            vpc=users.vpc,
            security_groups=[ec2.SecurityGroup(users.stack, "Closed", vpc=users.vpc, allow_all_outbound=False)],
        )
        users.pool.attach(function)
        users.pool.add_client("reports", read_only=True)
        self.pool: PoolProxy = users.pool
        self.template: Template = users.template()

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the properties of the resources of one type."""
        return [each["Properties"] for each in self.template["Resources"].values() if each["Type"] == kind]

    def task_environment(self) -> dict[str, Any]:
        """Return what the proxy's container is told."""
        (task,) = self.of_kind("AWS::ECS::TaskDefinition")
        return {each["Name"]: each["Value"] for each in task["ContainerDefinitions"][0]["Environment"]}

    def ports_into(self, group: str) -> set[int]:
        """Return the ports that are open to a security group from others or from itself."""
        return {
            rule["FromPort"]
            for rule in self.of_kind("AWS::EC2::SecurityGroupIngress")
            if group in json.dumps(rule["GroupId"])
        }


@pytest.fixture(scope="module", params=["nlb", "dns"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Such a pool with a load balancer, and one without."""
    return Made(tmp_path_factory.mktemp("data"), endpoint=request.param, data_endpoint=True)


def test_task_is_told_to_serve_it(made: Made) -> None:
    """The port is the proxy's setting, mapped, and open from functions and from the other tasks."""
    (task,) = made.of_kind("AWS::ECS::TaskDefinition")
    assert made.task_environment()[variable("data_port")] == str(DATA_PORT)
    mapped = {each["ContainerPort"] for each in task["ContainerDefinitions"][0]["PortMappings"]}
    assert mapped == made.ports_into("TaskSecurityGroup") == {CLIENT_PORT, HEALTH_PORT, DATA_PORT}


def test_function_may_reach_it_and_knows_where_it_is(made: Made) -> None:
    """The URL's host is the one that the certificate is for, and the closed function may send to that port."""
    (function,) = made.of_kind("AWS::Lambda::Function")
    variables = function["Environment"]["Variables"]
    url, host = json.dumps(variables["EMBERPOOL_DATA_ENDPOINT"]), json.dumps(variables["EMBERPOOL_HOST"])
    assert host.strip('"') in url
    assert f":{DATA_PORT}" in url
    sent = {rule["FromPort"] for rule in made.of_kind("AWS::EC2::SecurityGroupEgress") if "Closed" in str(rule)}
    assert sent == {CLIENT_PORT, DATA_PORT}


def test_load_balancer_sends_it_to_tasks_that_are_ready(tmp_path: Path) -> None:
    """Its listener has a group of its own, whose health is the task's."""
    made = Made(tmp_path, data_endpoint=True)
    groups = {each["Port"]: each for each in made.of_kind("AWS::ElasticLoadBalancingV2::TargetGroup")}
    assert set(groups) == {CLIENT_PORT, DATA_PORT}
    for member in ("HealthCheckPath", "HealthCheckPort", "TargetGroupAttributes"):
        assert groups[DATA_PORT][member] == groups[CLIENT_PORT][member], member
    (service,) = made.of_kind("AWS::ECS::Service")
    assert {each["ContainerPort"] for each in service["LoadBalancers"]} == {CLIENT_PORT, DATA_PORT}
    assert {each["Port"] for each in made.of_kind("AWS::ElasticLoadBalancingV2::Listener")} == {CLIENT_PORT, DATA_PORT}


def test_read_only_client_is_told_to_the_proxy(made: Made) -> None:
    """What `add_client(read_only=True)` says is in the proxy's own form."""
    assert '\\"read_only\\": true' in json.dumps(made.task_environment()[variable("clients")])


def test_without_it_nothing_of_it_is_there(tmp_path: Path) -> None:
    """By default no port is opened for it, and functions are told of none."""
    made = Made(tmp_path)
    assert made.pool.data_url is None
    assert made.task_environment()[variable("data_port")] == "0"
    assert str(DATA_PORT) not in json.dumps(made.template)
    assert "EMBERPOOL_DATA_ENDPOINT" not in json.dumps(made.template)
