"""Secrets Manager: generated secrets, and their attachment to a database."""

from __future__ import annotations

import json

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register, register_call, register_nothing

SECRET = "AWS::SecretsManager::Secret"  # noqa: S105 (a type's name)
SERVICE = "secretsmanager"
OF_THE_TEMPLATE = ("SecretStringTemplate", "GenerateStringKey")


def register_types() -> None:
    """Teach moto the types of Secrets Manager."""
    register(SECRET, _create_secret, _delete_secret, name_property="Name")
    register("AWS::SecretsManager::SecretTargetAttachment", _attach)
    register_call(
        "AWS::SecretsManager::ResourcePolicy",
        SERVICE,
        "put_resource_policy",
        lambda _, given: Made(given["SecretId"]),
    )
    register_nothing("AWS::SecretsManager::RotationSchedule")


def _create_secret(region: str, properties: Properties, name: str) -> Made:
    kept: Properties = {key: properties[key] for key in ("Description", "KmsKeyId", "Tags") if key in properties}
    kept |= {"Name": properties.get("Name") or name, "SecretString": _secret_string(region, properties)}
    arn = call(region, SECRET, SERVICE, "create_secret", kept)["ARN"]
    return Made(arn, {"Id": arn})


def _secret_string(region: str, properties: Properties) -> str:
    if "SecretString" in properties:
        return str(properties["SecretString"])
    generated = properties.get("GenerateSecretString") or {}
    asked = {key: value for key, value in generated.items() if key not in OF_THE_TEMPLATE}
    password: str = call(region, SECRET, SERVICE, "get_random_password", asked)["RandomPassword"]
    if "GenerateStringKey" not in generated:
        return password
    template = json.loads(generated.get("SecretStringTemplate", "{}"))
    return json.dumps({**template, generated["GenerateStringKey"]: password})


def _delete_secret(region: str, arn: str, _: Properties) -> None:
    client(SERVICE, region).delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)


def _attach(region: str, properties: Properties, _: str) -> Made:
    manager, arn, target = client(SERVICE, region), properties["SecretId"], properties["TargetId"]
    rds = client("rds", region)
    secret = json.loads(manager.get_secret_value(SecretId=arn)["SecretString"])
    if properties["TargetType"].endswith("DBCluster"):
        cluster = rds.describe_db_clusters(DBClusterIdentifier=target)["DBClusters"][0]
        secret |= {"engine": cluster["Engine"], "host": cluster["Endpoint"], "port": cluster["Port"]}
    else:
        instance = rds.describe_db_instances(DBInstanceIdentifier=target)["DBInstances"][0]
        endpoint = instance["Endpoint"]
        secret |= {"engine": instance["Engine"], "host": endpoint["Address"], "port": endpoint["Port"]}
    manager.put_secret_value(SecretId=arn, SecretString=json.dumps(secret))
    return Made(arn, {"Id": arn})
