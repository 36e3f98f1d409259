"""A pool without a load balancer: functions find the tasks by their name in the VPC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from tests.infra.conftest import PoolInAStack, Template

from emberpool_cdk import PoolMonitoring
from emberpool_cdk.pool_service import FLEET_TTL_SECONDS
from emberpool_proxy.settings import ProxySettings


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """A stack with such a pool, a function and the monitoring."""
    users = PoolInAStack(tmp_path_factory.mktemp("dns"), endpoint="dns")
    function = lambda_.Function(
        users.stack,
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_13,
        architecture=lambda_.Architecture.ARM_64,
        handler="index.handler",
        code=lambda_.Code.from_inline("def handler(event, context): ..."),
        timeout=Duration.seconds(15),
        vpc=users.vpc,
        security_groups=[ec2.SecurityGroup(users.stack, "Closed", vpc=users.vpc, allow_all_outbound=False)],
    )
    users.pool.attach(function)
    PoolMonitoring(users.stack, "Monitoring", pool=users.pool)
    return users.template()


def _of_kind(template: Template, kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]


def _environment(template: Template) -> dict[str, Any]:
    (task,) = _of_kind(template, "AWS::ECS::TaskDefinition")
    listed = task["ContainerDefinitions"][0]["Environment"]
    return {each["Name"]: each["Value"] for each in listed}


def test_there_is_no_load_balancer_to_pay(template: Template) -> None:
    """Neither it nor its target group is there, and the service has nothing that needs them."""
    kinds = {each["Type"] for each in template["Resources"].values()}
    assert not [kind for kind in kinds if "ElasticLoadBalancing" in kind]
    (service,) = _of_kind(template, "AWS::ECS::Service")
    assert "LoadBalancers" not in service
    assert "HealthCheckGracePeriodSeconds" not in service
    assert len(service["ServiceRegistries"]) == 1


def test_function_connects_to_the_tasks_own_name(template: Template) -> None:
    """The host of the function is the name that ECS registers the tasks under, and the certificate is for it."""
    environment = _environment(template)
    names = [
        each["Environment"]["Variables"]["EMBERPOOL_HOST"]
        for each in _of_kind(template, "AWS::Lambda::Function")
        if "EMBERPOOL_HOST" in each.get("Environment", {}).get("Variables", {})
    ]
    (zone,) = [each["Name"] for each in _of_kind(template, "AWS::ServiceDiscovery::PrivateDnsNamespace")]
    assert names == [f"tasks.{zone}"]
    assert environment["EMBERPOOL_PROXY_CLIENT_TLS_HOST_NAMES"] == environment["EMBERPOOL_PROXY_FLEET_NAME"] == names[0]


def test_rules_lead_from_the_function_to_the_tasks(template: Template) -> None:
    """Both sides of the port are open between the function's group and the tasks', and for nobody else."""
    rules = [
        rule
        for rule in _of_kind(template, "AWS::EC2::SecurityGroupIngress")
        if "TaskSecurityGroup" in json.dumps(rule["GroupId"])
        and "TaskSecurityGroup" not in json.dumps(rule["SourceSecurityGroupId"])
    ]
    assert [("Closed" in json.dumps(rule["SourceSecurityGroupId"]), rule["FromPort"]) for rule in rules] == [
        (True, 6432)
    ]
    egress = _of_kind(template, "AWS::EC2::SecurityGroupEgress")
    assert any("Closed" in json.dumps(rule["GroupId"]) and rule["FromPort"] == 6432 for rule in egress)


def test_task_waits_until_its_name_is_forgotten(template: Template) -> None:
    """In a drain clients may come for as long as the name is remembered; the proxy accepts the setting."""
    resolved = {"EMBERPOOL_PROXY_DATABASE_HOST": "db.internal"}
    given = {
        name: value if isinstance(value, str) else resolved.get(name, f"arn:{name}")
        for name, value in _environment(template).items()
    }
    settings = ProxySettings.from_environment(given)
    assert settings.balancer_notice_seconds == FLEET_TTL_SECONDS
    (registry,) = _of_kind(template, "AWS::ServiceDiscovery::Service")
    assert registry["DnsConfig"]["DnsRecords"] == [{"TTL": FLEET_TTL_SECONDS, "Type": "A"}]


def test_alarm_counts_the_tasks_that_write_metrics(template: Template) -> None:
    """No task is seen by the lack of metrics, as no load balancer tells of its health."""
    (alarm,) = [
        each
        for each in _of_kind(template, "AWS::CloudWatch::Alarm")
        if each["AlarmDescription"].startswith("No healthy task")
    ]
    assert alarm["TreatMissingData"] == "breaching"
    assert (alarm["Namespace"], alarm["Statistic"]) == ("Emberpool", "SampleCount")


def test_other_endpoints_are_refused(tmp_path: Path) -> None:
    """There are two."""
    with pytest.raises(ValueError, match="endpoint must be nlb or dns, got 'alb'"):
        PoolInAStack(tmp_path, endpoint="alb")
