"""RDS instances, their subnet groups and parameter groups."""

from __future__ import annotations

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

INSTANCE = "AWS::RDS::DBInstance"
SUBNET_GROUP = "AWS::RDS::DBSubnetGroup"
LONGEST_IDENTIFIER = 63


def register_types() -> None:
    """Teach moto the types of RDS."""
    register(SUBNET_GROUP, _create_subnet_group, _delete_subnet_group, name_property="DBSubnetGroupName")
    register("AWS::RDS::DBParameterGroup", _create_parameters, _delete_parameters, name_property="DBParameterGroupName")
    register(INSTANCE, _create_instance, _delete_instance, name_property="DBInstanceIdentifier")


def _create_subnet_group(region: str, properties: Properties, name: str) -> Made:
    given = {"DBSubnetGroupName": name, **properties}
    answer = call(region, SUBNET_GROUP, "rds", "create_db_subnet_group", given)
    return Made(answer["DBSubnetGroup"]["DBSubnetGroupName"])


def _delete_subnet_group(region: str, name: str, _: Properties) -> None:
    client("rds", region).delete_db_subnet_group(DBSubnetGroupName=name)


def _create_parameters(region: str, properties: Properties, name: str) -> Made:
    rds = client("rds", region)
    group = (properties.get("DBParameterGroupName") or name).lower()
    rds.create_db_parameter_group(
        DBParameterGroupName=group,
        DBParameterGroupFamily=properties["Family"],
        Description=properties["Description"],
    )
    parameters = [
        {"ParameterName": key, "ParameterValue": str(value), "ApplyMethod": "pending-reboot"}
        for key, value in properties.get("Parameters", {}).items()
    ]
    if parameters:
        rds.modify_db_parameter_group(DBParameterGroupName=group, Parameters=parameters)
    return Made(group, {"DBParameterGroupName": group})


def _delete_parameters(region: str, group: str, _: Properties) -> None:
    client("rds", region).delete_db_parameter_group(DBParameterGroupName=group)


def _create_instance(region: str, properties: Properties, name: str) -> Made:
    identifier = (properties.get("DBInstanceIdentifier") or name).lower()[:LONGEST_IDENTIFIER]
    given = {**properties, "DBInstanceIdentifier": identifier}
    given["VpcSecurityGroupIds"] = given.pop("VPCSecurityGroups", None)
    given.pop("DeleteAutomatedBackups", None)  # of the deletion
    instance = call(region, INSTANCE, "rds", "create_db_instance", given)["DBInstance"]
    endpoint = (
        instance.get("Endpoint")
        or client("rds", region).describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"][0]["Endpoint"]
    )
    attributes = {
        "Endpoint.Address": endpoint["Address"],
        "Endpoint.Port": str(endpoint["Port"]),
        "DBInstanceArn": instance["DBInstanceArn"],
    }
    if secret := instance.get("MasterUserSecret"):
        attributes["MasterUserSecret.SecretArn"] = secret["SecretArn"]
    return Made(identifier, attributes)


def _delete_instance(region: str, identifier: str, _: Properties) -> None:
    client("rds", region).delete_db_instance(DBInstanceIdentifier=identifier, SkipFinalSnapshot=True)
