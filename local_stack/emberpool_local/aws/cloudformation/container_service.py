"""ECS clusters, task definitions and services."""

from __future__ import annotations

from typing import Any

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

CLUSTER = "AWS::ECS::Cluster"
TASK_DEFINITION = "AWS::ECS::TaskDefinition"
SERVICE = "AWS::ECS::Service"
IN_PLACE = (
    "DeploymentConfiguration",
    "DesiredCount",
    "HealthCheckGracePeriodSeconds",
    "NetworkConfiguration",
    "TaskDefinition",
)


def register_types() -> None:
    """Teach moto the types of ECS."""
    register(CLUSTER, _create_cluster, _delete_cluster, name_property="ClusterName")
    register(TASK_DEFINITION, _create_task_definition, _delete_task_definition)
    register(
        SERVICE,
        _create_service,
        _delete_service,
        name_property="ServiceName",
        update=_update_service,
        in_place=IN_PLACE,
    )


def _create_cluster(region: str, properties: Properties, name: str) -> Made:
    given = {"ClusterName": name, **properties}
    given["Settings"] = given.pop("ClusterSettings", None)
    cluster: dict[str, Any] = call(region, CLUSTER, "ecs", "create_cluster", given)["cluster"]
    return Made(cluster["clusterName"], {"Arn": cluster["clusterArn"]})


def _delete_cluster(region: str, name: str, _: Properties) -> None:
    client("ecs", region).delete_cluster(cluster=name)


def _create_task_definition(region: str, properties: Properties, name: str) -> Made:
    answer = call(region, TASK_DEFINITION, "ecs", "register_task_definition", {"Family": name, **properties})
    arn = answer["taskDefinition"]["taskDefinitionArn"]
    return Made(arn, {"TaskDefinitionArn": arn})


def _delete_task_definition(region: str, arn: str, _: Properties) -> None:
    client("ecs", region).deregister_task_definition(taskDefinition=arn)


def _create_service(region: str, properties: Properties, name: str) -> Made:
    given = {"ServiceName": name, "DesiredCount": 1, **properties}
    service: dict[str, Any] = call(region, SERVICE, "ecs", "create_service", given)["service"]
    _update_service(region, service["serviceArn"], given)  # moto's create_service forgets DeploymentConfiguration
    return Made(service["serviceArn"], {"Name": service["serviceName"], "ServiceArn": service["serviceArn"]})


def _update_service(region: str, arn: str, properties: Properties) -> None:
    given = {name: properties[name] for name in IN_PLACE if name in properties}
    call(region, SERVICE, "ecs", "update_service", {"Cluster": properties.get("Cluster"), "Service": arn, **given})


def _delete_service(region: str, arn: str, properties: Properties) -> None:
    cluster = properties.get("Cluster", "default")
    client("ecs", region).delete_service(cluster=cluster, service=arn, force=True)
