"""Reads back what a deployment created, by AWS's own API."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from emberpool_local.aws.cdk_command import CdkCommand
from emberpool_local.aws.moto_process import MotoServer

# Made by `cdk bootstrap`; an account keeps them.
BOOTSTRAP_STACK = "CDKToolkit"
BOOTSTRAP_ROLES = "cdk-hnb659fds-"
# Made and deleted by Application Auto Scaling with its policies; moto forgets the second.
ALARMS_OF_SCALING = "TargetTracking-"
BOOTSTRAP_PARAMETERS = "/cdk-bootstrap/"
OF_RDS = "default."  # parameter groups that every account has


@dataclass(frozen=True)
class Row:
    """One thing that exists: its kind, its name and what matters about it."""

    kind: str
    name: str
    facts: str


def created(command: CdkCommand, server: MotoServer) -> list[Row]:
    """Return what exists after a deployment, the stacks' outputs last."""
    return [
        *_stacks(server),
        *_service(server),
        *_balancers(server),
        *_functions(server),
        *_urls(server),
        *_databases(server),
        *_monitoring(server),
        *_rules(server),
        *_outputs(command),
    ]


def left_over(server: MotoServer) -> list[Row]:
    """Return what still exists after `cdk destroy`: nothing, if all is well.

    The account's default VPC and the bootstrap stack are not of the app.
    """
    return [
        *(row for row in _stacks(server) if row.name != BOOTSTRAP_STACK),
        *_network_left(server),
        *_namespaces_left(server),
        *_roles_left(server),
        *_storage_left(server),
        *_groups_left(server),
        *_scaling_left(server),
        *_service(server),
        *_balancers(server),
        *_functions(server),
        *_urls(server),
        *_databases(server),
        *_monitoring(server),
    ]


def _network_left(server: MotoServer) -> list[Row]:
    ec2 = server.client("ec2")
    vpcs = ec2.describe_vpcs()["Vpcs"]
    default = {each["VpcId"] for each in vpcs if each["IsDefault"]}
    # A deleted endpoint stays listed for a while.
    endpoints = [each for each in ec2.describe_vpc_endpoints()["VpcEndpoints"] if each["State"] != "deleted"]
    found = {
        "VPC": (vpcs, "VpcId"),
        "security group": (ec2.describe_security_groups()["SecurityGroups"], "GroupId"),
        "subnet": (ec2.describe_subnets()["Subnets"], "SubnetId"),
        "route table": (ec2.describe_route_tables()["RouteTables"], "RouteTableId"),
        "endpoint": (endpoints, "VpcEndpointId"),
    }
    return [
        Row(kind, each[name], each["VpcId"])
        for kind, (resources, name) in found.items()
        for each in resources
        if each["VpcId"] not in default
    ]


def _namespaces_left(server: MotoServer) -> list[Row]:
    cloud_map = server.client("servicediscovery")
    return [
        *(Row("namespace", each["Name"], each["Type"]) for each in cloud_map.list_namespaces()["Namespaces"]),
        *(Row("Cloud Map service", each["Name"], each["Id"]) for each in cloud_map.list_services()["Services"]),
    ]


def _roles_left(server: MotoServer) -> list[Row]:
    roles = server.client("iam").list_roles()["Roles"]
    return [Row("role", each["RoleName"], "") for each in roles if not each["RoleName"].startswith(BOOTSTRAP_ROLES)]


def _storage_left(server: MotoServer) -> list[Row]:
    secrets = server.client("secretsmanager").list_secrets()["SecretList"]
    logs = server.client("logs").describe_log_groups()["logGroups"]
    layers = server.client("lambda").list_layers()["Layers"]
    parameters = server.client("ssm").describe_parameters()["Parameters"]
    return [
        *(Row("parameter", each["Name"], "") for each in parameters if BOOTSTRAP_PARAMETERS not in each["Name"]),
        *(Row("secret", each["Name"], each["ARN"]) for each in secrets),
        *(Row("log group", each["logGroupName"], "") for each in logs),
        *(Row("layer", each["LayerName"], each["LatestMatchingVersion"]["LayerVersionArn"]) for each in layers),
    ]


def _groups_left(server: MotoServer) -> list[Row]:
    rds = server.client("rds")
    parameters = rds.describe_db_parameter_groups()["DBParameterGroups"]
    subnets = rds.describe_db_subnet_groups()["DBSubnetGroups"]
    return [
        *(
            Row("parameter group", each["DBParameterGroupName"], each["DBParameterGroupFamily"])
            for each in parameters
            if not each["DBParameterGroupName"].startswith(OF_RDS)
        ),
        *(Row("subnet group", each["DBSubnetGroupName"], each["VpcId"]) for each in subnets),
    ]


def _scaling_left(server: MotoServer) -> list[Row]:
    targets = server.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="ecs")
    definitions = server.client("ecs").list_task_definitions(status="ACTIVE")["taskDefinitionArns"]
    return [
        *(Row("scalable target", each["ResourceId"], "") for each in targets["ScalableTargets"]),
        *(Row("task definition", arn.rsplit("/", 1)[1], arn) for arn in definitions),
    ]


def _stacks(server: MotoServer) -> list[Row]:
    stacks = server.client("cloudformation").describe_stacks()["Stacks"]
    return [Row("stack", each["StackName"], each["StackStatus"]) for each in stacks]


def _service(server: MotoServer) -> list[Row]:
    ecs = server.client("ecs")
    rows = []
    for cluster in ecs.list_clusters()["clusterArns"]:
        arns = ecs.list_services(cluster=cluster)["serviceArns"]
        for service in ecs.describe_services(cluster=cluster, services=arns)["services"] if arns else ():
            if service["status"] == "INACTIVE":  # deleted; ECS remembers it for a while
                continue
            rows.append(Row("ECS service", service["serviceName"], f"{service['desiredCount']} tasks on Fargate"))
            task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
            rows.append(_task(task))
    return rows


def _task(task: dict[str, Any]) -> Row:
    container = task["containerDefinitions"][0]
    variables = [each["name"] for each in container.get("environment", [])]
    secrets = [name for name in variables if name.endswith("_SECRET_ARN")]
    facts = (
        f"{task['cpu']} CPU units, {task['memory']} MiB, user {container.get('user', 'root')}, "
        f"{len(variables)} variables, {len(secrets)} of them name a secret"
    )
    return Row("task definition", f"{task['family']}:{task['revision']}", facts)


def _balancers(server: MotoServer) -> list[Row]:
    elb = server.client("elbv2")
    rows = []
    for balancer in elb.describe_load_balancers()["LoadBalancers"]:
        arn = balancer["LoadBalancerArn"]
        ports = [each["Port"] for each in elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]]
        groups = elb.describe_target_groups(LoadBalancerArn=arn)["TargetGroups"]
        checks = [f"{each['HealthCheckPort']}{each.get('HealthCheckPath', '')}" for each in groups]
        facts = f"{balancer['Scheme']} {balancer['Type']}, port {_joined(ports)}, health check {_joined(checks)}"
        rows.append(Row("load balancer", balancer["DNSName"], facts))
    return rows


def _functions(server: MotoServer) -> list[Row]:
    rows = []
    for function in server.client("lambda").list_functions()["Functions"]:
        layers = [each["Arn"] for each in function.get("Layers", [])]
        facts = f"{function['Runtime']}, {_joined(function['Architectures'])}, {len(layers)} layer"
        rows.append(Row("function", function["FunctionName"], facts))
        rows += [Row("layer", arn.rsplit(":", 2)[1], f"version {arn.rsplit(':', 1)[1]}") for arn in layers]
    return rows


def _urls(server: MotoServer) -> list[Row]:
    functions = server.client("lambda")
    rows = []
    for function in functions.list_functions()["Functions"]:
        # moto has no list_function_url_configs.
        with suppress(functions.exceptions.ResourceNotFoundException):
            url = functions.get_function_url_config(FunctionName=function["FunctionName"])
            rows.append(Row("function URL", url["FunctionUrl"], f"auth type {url['AuthType']}"))
    return rows


def _databases(server: MotoServer) -> list[Row]:
    found = server.client("rds").describe_db_instances()["DBInstances"]
    return [
        Row(
            "database",
            each["DBInstanceIdentifier"],
            f"{each['Engine']} {each['EngineVersion']}, {each['DBInstanceClass']}, "
            f"{'encrypted' if each['StorageEncrypted'] else 'NOT encrypted'}",
        )
        for each in found
    ]


def _monitoring(server: MotoServer) -> list[Row]:
    cloudwatch = server.client("cloudwatch")
    alarms = [
        each
        for each in cloudwatch.describe_alarms()["MetricAlarms"]
        if not each["AlarmName"].startswith(ALARMS_OF_SCALING)
    ]
    return [
        *(Row("dashboard", each["DashboardName"], "") for each in cloudwatch.list_dashboards()["DashboardEntries"]),
        *(Row("alarm", each["AlarmDescription"].split(". ")[0], each["MetricName"]) for each in alarms),
    ]


def _rules(server: MotoServer) -> list[Row]:
    groups = server.client("ec2").describe_security_groups()["SecurityGroups"]
    names = {each["GroupId"]: each["Description"] for each in groups}
    rows = []
    for group in groups:
        for rule in group["IpPermissions"]:
            for pair in rule.get("UserIdGroupPairs", []):
                source = names.get(pair["GroupId"], pair["GroupId"])
                if "FromPort" in rule:
                    facts = f"port {rule['FromPort']} from {source}: {pair.get('Description', '')}"
                    rows.append(Row("security group rule", group["Description"], facts))
    return rows


def _outputs(command: CdkCommand) -> list[Row]:
    if not command.outputs_file.exists():
        return []
    stacks = json.loads(command.outputs_file.read_text())
    return [
        Row("output", f"{stack}.{name}", str(value))
        for stack, outputs in stacks.items()
        for name, value in outputs.items()
        if not name.startswith("ExportsOutput")
    ]


def _joined(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)
