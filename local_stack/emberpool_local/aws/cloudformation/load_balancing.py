"""Load balancers, target groups and listeners."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from emberpool_local.aws.cloudformation import gaps
from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

BALANCER = "AWS::ElasticLoadBalancingV2::LoadBalancer"
TARGET_GROUP = "AWS::ElasticLoadBalancingV2::TargetGroup"
LISTENER = "AWS::ElasticLoadBalancingV2::Listener"


def register_types() -> None:
    """Teach moto the types of load balancing."""
    register(BALANCER, _create_balancer, _delete_balancer, name_property="Name")
    register(TARGET_GROUP, _create_target_group, _delete_target_group, name_property="Name")
    register(LISTENER, _create_listener, _delete_listener)


def _attributes(properties: list[Properties]) -> list[dict[str, str]]:
    return [{"Key": each["Key"], "Value": str(each["Value"]).lower()} for each in properties]


def _create_balancer(region: str, properties: Properties, name: str) -> Made:
    elb = client("elbv2", region)
    given = {"Name": name, **properties}
    attributes = _attributes(given.pop("LoadBalancerAttributes", []))
    made: dict[str, Any] = call(region, BALANCER, "elbv2", "create_load_balancer", given)["LoadBalancers"][0]
    arn = made["LoadBalancerArn"]
    for attribute in attributes:
        try:
            elb.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=[attribute])
        except ClientError:
            gaps.record("dropped", BALANCER, f"LoadBalancerAttributes.{attribute['Key']}")
    return Made(
        arn,
        {
            "LoadBalancerArn": arn,
            "DNSName": made["DNSName"],
            "CanonicalHostedZoneID": made["CanonicalHostedZoneId"],
            "LoadBalancerFullName": arn.split("loadbalancer/")[1],
            "LoadBalancerName": made["LoadBalancerName"],
            "SecurityGroups": made.get("SecurityGroups", []),
        },
    )


def _delete_balancer(region: str, arn: str, _: Properties) -> None:
    client("elbv2", region).delete_load_balancer(LoadBalancerArn=arn)


def _create_target_group(region: str, properties: Properties, name: str) -> Made:
    given = {"Name": name, **properties}
    attributes = _attributes(given.pop("TargetGroupAttributes", []))
    answer = call(region, TARGET_GROUP, "elbv2", "create_target_group", given)
    arn = answer["TargetGroups"][0]["TargetGroupArn"]
    if attributes:
        client("elbv2", region).modify_target_group_attributes(TargetGroupArn=arn, Attributes=attributes)
    names = {"TargetGroupFullName": arn.split(":")[-1], "TargetGroupName": arn.split("/")[1]}
    return Made(arn, {"TargetGroupArn": arn, "LoadBalancerArns": [], **names})


def _delete_target_group(region: str, arn: str, _: Properties) -> None:
    client("elbv2", region).delete_target_group(TargetGroupArn=arn)


def _create_listener(region: str, properties: Properties, _: str) -> Made:
    given = dict(properties)
    attributes = _attributes(given.pop("ListenerAttributes", []))
    arn = call(region, LISTENER, "elbv2", "create_listener", given)["Listeners"][0]["ListenerArn"]
    for attribute in attributes:
        try:
            client("elbv2", region).modify_listener_attributes(ListenerArn=arn, Attributes=[attribute])
        except (ClientError, AttributeError):
            gaps.record("dropped", LISTENER, f"ListenerAttributes.{attribute['Key']}")
    return Made(arn, {"ListenerArn": arn})


def _delete_listener(region: str, arn: str, _: Properties) -> None:
    client("elbv2", region).delete_listener(ListenerArn=arn)
