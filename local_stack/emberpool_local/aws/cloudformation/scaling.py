"""Application Auto Scaling: the range of the service's tasks and the policy that moves it."""

from __future__ import annotations

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

SERVICE = "application-autoscaling"
TARGET = "AWS::ApplicationAutoScaling::ScalableTarget"
POLICY = "AWS::ApplicationAutoScaling::ScalingPolicy"
IDENTITY = ("ResourceId", "ScalableDimension", "ServiceNamespace")


def register_types() -> None:
    """Teach moto the types of Application Auto Scaling."""
    register(TARGET, _create_target, _delete_target, update=_update_target, in_place=("MinCapacity", "MaxCapacity"))
    register(POLICY, _create_policy)


def _create_target(region: str, properties: Properties, _: str) -> Made:
    call(region, TARGET, SERVICE, "register_scalable_target", properties)
    return Made("|".join(properties[name] for name in IDENTITY))


def _update_target(region: str, _: str, properties: Properties) -> None:
    call(region, TARGET, SERVICE, "register_scalable_target", properties)


def _delete_target(region: str, _: str, properties: Properties) -> None:
    # Its policies go with it.
    client(SERVICE, region).deregister_scalable_target(**{name: properties[name] for name in IDENTITY})


def _create_policy(region: str, properties: Properties, _: str) -> Made:
    given = dict(properties)
    target = given.pop("ScalingTargetId", None)
    if target:
        given |= dict(zip(IDENTITY, target.split("|"), strict=True))
    arn = call(region, POLICY, SERVICE, "put_scaling_policy", given)["PolicyARN"]
    return Made(arn, {"Arn": arn})
