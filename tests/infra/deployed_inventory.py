"""Everything that a deployment has made, read back by AWS's own API, and what differs between two readings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emberpool_local.aws.deploy_local import Deployment

# What is read: the service, the call, the member of its answer, and the names that tell its elements apart.
LISTS = (
    ("ec2", "describe_vpcs", "Vpcs", ("VpcId",)),
    ("ec2", "describe_subnets", "Subnets", ("SubnetId",)),
    ("ec2", "describe_route_tables", "RouteTables", ("RouteTableId",)),
    ("ec2", "describe_vpc_endpoints", "VpcEndpoints", ("VpcEndpointId",)),
    ("ec2", "describe_security_groups", "SecurityGroups", ("GroupId",)),
    ("ec2", "describe_flow_logs", "FlowLogs", ("FlowLogId",)),
    ("rds", "describe_db_instances", "DBInstances", ("DBInstanceIdentifier",)),
    ("rds", "describe_db_parameter_groups", "DBParameterGroups", ("DBParameterGroupName",)),
    ("secretsmanager", "list_secrets", "SecretList", ("Name",)),
    ("servicediscovery", "list_namespaces", "Namespaces", ("Name",)),
    ("servicediscovery", "list_services", "Services", ("Name",)),
    ("elbv2", "describe_load_balancers", "LoadBalancers", ("LoadBalancerName",)),
    ("elbv2", "describe_target_groups", "TargetGroups", ("TargetGroupName",)),
    ("logs", "describe_log_groups", "logGroups", ("logGroupName",)),
    ("lambda", "list_functions", "Functions", ("FunctionName",)),
    ("lambda", "list_layers", "Layers", ("LayerName",)),
    ("cloudwatch", "describe_alarms", "MetricAlarms", ("AlarmName",)),
    ("iam", "list_roles", "Roles", ("RoleName",)),
)
# Of the reading, not of the deployment.
VOLATILE = (
    "AlarmConfigurationUpdatedTimestamp",
    "LastAccessedDate",
    "LastModified",
    "LatestRestorableTime",
    "ResponseMetadata",
    "RevisionId",
    "StateUpdatedTimestamp",
)
# Application Auto Scaling's own: moto makes them, and forgets some.
ALARMS_OF_SCALING = "TargetTracking-"

Reading = dict[str, Any]


def inventory(deployment: Deployment) -> Reading:
    """Return all of it as one flat mapping of a path to a value."""
    found: dict[str, Any] = {}
    for service, call, member, names in LISTS:
        elements = getattr(deployment.server.client(service), call)()[member]
        found[member] = {".".join(str(each[name]) for name in names): each for each in elements}
    found["MetricAlarms"] = {
        name: alarm for name, alarm in found["MetricAlarms"].items() if not name.startswith(ALARMS_OF_SCALING)
    }
    found |= _service(deployment) | _policies(deployment, list(found["Roles"])) | _texts(deployment)
    return dict(_flat(found, ""))


def changed_paths(before: Reading, after: Reading) -> set[str]:
    """Return the paths of what is there in one only, or differs."""
    return {path for path in before | after if before.get(path) != after.get(path)}


def _service(deployment: Deployment) -> dict[str, Any]:
    ecs = deployment.server.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    (arn,) = ecs.list_services(cluster=cluster)["serviceArns"]
    (service,) = ecs.describe_services(cluster=cluster, services=[arn])["services"]
    task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
    (container,) = task["containerDefinitions"]
    container["environment"] = {each["name"]: each["value"] for each in container["environment"]}
    for own in ("deployments", "events", "createdAt", "updatedAt", "pendingCount", "runningCount"):
        service.pop(own, None)  # what moto makes of running tasks, of which there are none
    scaling = deployment.server.client("application-autoscaling")
    targets = scaling.describe_scalable_targets(ServiceNamespace="ecs")["ScalableTargets"]
    policies = scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"]
    return {
        "Service": service,
        "Task": {**task, "containerDefinitions": container},
        "ScalableTargets": {each["ResourceId"]: each for each in targets},
        "ScalingPolicies": {each["PolicyName"]: {**each, "Alarms": None} for each in policies},
    }


def _policies(deployment: Deployment, roles: list[str]) -> dict[str, Any]:
    iam = deployment.server.client("iam")
    return {
        "Policies": {
            role: {
                name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
                for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
            }
            for role in roles
        }
    }


def _texts(deployment: Deployment) -> dict[str, Any]:
    client = deployment.server.client
    secrets = [each["Name"] for each in client("secretsmanager").list_secrets()["SecretList"]]
    parameters = [each["Name"] for each in client("ssm").describe_parameters()["Parameters"]]
    dashboards = [each["DashboardName"] for each in client("cloudwatch").list_dashboards()["DashboardEntries"]]
    functions = [each["FunctionName"] for each in client("lambda").list_functions()["Functions"]]
    return {
        "Secrets": {name: client("secretsmanager").get_secret_value(SecretId=name)["SecretString"] for name in secrets},
        "Parameters": {name: client("ssm").get_parameter(Name=name)["Parameter"]["Value"] for name in parameters},
        "Dashboards": {
            name: json.loads(client("cloudwatch").get_dashboard(DashboardName=name)["DashboardBody"])
            for name in dashboards
        },
        "Urls": {name: client("lambda").get_function_url_config(FunctionName=name) for name in functions},
    }


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in VOLATILE:
                yield from _flat(each, f"{path}/{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}/{index}")
    else:
        yield path, value
