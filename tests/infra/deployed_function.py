"""Runs what was deployed: the uploaded zips under AWS's own runtime client, and the proxy by its task's environment.

Only what AWS itself would be (addresses, the database, the way to the simulated services) is put in from here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emberpool import settings as layer
from emberpool_local.aws.deploy_local import Deployment
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_proxy.settings import PREFIX

LOOPBACK = "127.0.0.1"
AWS_CREDENTIALS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "testing")


def outputs(deployment: Deployment, stack: str) -> dict[str, str]:
    """Return the outputs of a stack as `cdk deploy` wrote them."""
    found: dict[str, str] = json.loads(deployment.command.outputs_file.read_text())[stack]
    return found


def uploaded(deployment: Deployment, sha256: str) -> zipfile.ZipFile:
    """Return the zip with the hash that Lambda computed: moto gives no address for a layer's content."""
    bucket = deployment.server.client("s3")
    (assets,) = [each["Name"] for each in bucket.list_buckets()["Buckets"]]
    for item in bucket.list_objects_v2(Bucket=assets)["Contents"]:
        content: bytes = bucket.get_object(Bucket=assets, Key=item["Key"])["Body"].read()
        if base64.b64encode(hashlib.sha256(content).digest()).decode() == sha256:
            return zipfile.ZipFile(io.BytesIO(content))
    raise AssertionError("nothing that was uploaded has this hash")


def layer_zip(deployment: Deployment, arn: str) -> zipfile.ZipFile:
    """Return the content of a published layer version."""
    _, name, version = arn.rsplit(":", 2)
    found = deployment.server.client("lambda").get_layer_version(LayerName=name, VersionNumber=int(version))
    return uploaded(deployment, found["Content"]["CodeSha256"])


def task_settings(deployment: Deployment) -> dict[str, str]:
    """Return the environment of the service's task definition."""
    ecs = deployment.server.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    (service,) = ecs.list_services(cluster=cluster)["serviceArns"]
    (found,) = ecs.describe_services(cluster=cluster, services=[service])["services"]
    task = ecs.describe_task_definition(taskDefinition=found["taskDefinition"])["taskDefinition"]
    return {each["name"]: each["value"] for each in task["containerDefinitions"][0]["environment"]}


def deployed_proxy(deployment: Deployment, postgres: EmbeddedPostgres, program: PgbouncerProgram) -> LocalProxy:
    """Return the proxy as its task would run it, before a PostgreSQL here; its process must find the simulated AWS.

    The role that it logs in as, with the password of the deployed secret, is made.
    """
    settings = {name.removeprefix(PREFIX).lower(): value for name, value in task_settings(deployment).items()}
    secret = deployment.server.client("secretsmanager").get_secret_value(SecretId=settings["database_secret_arn"])
    login = json.loads(secret["SecretString"])
    postgres.create_role_and_database(login["username"], login["password"], "of_the_role")
    here = {
        "client_tls_host_names": LOOPBACK,
        "server_tls_mode": "disable",  # the server is on this machine and has no certificate
        "server_tls_ca_file": "",
        "fleet_name": "",  # a name in the VPC
        "metrics_emf": "off",
        "client_user": "",  # of LocalProxy: here the secret has it
        "client_password": "",
    }
    for name in ("database_host", "database_port", "client_port", "health_port"):
        settings.pop(name)
    access = DatabaseAccess(postgres.host, postgres.port, settings["database_name"], "", "")
    return LocalProxy(access, settings={**settings, **here}, pgbouncer=program)


def deployed_function(deployment: Deployment, configuration: Mapping[str, Any], port: int, folder: Path) -> Fleet:
    """Return the function with its deployed code, layer and environment, as far as that is not an address."""
    uploaded(deployment, configuration["CodeSha256"]).extractall(folder / "task")
    (arn,) = [each["Arn"] for each in configuration["Layers"]]
    layer_zip(deployment, arn).extractall(folder / "opt")
    (folder / "tmp").mkdir()
    environment = {
        **configuration["Environment"]["Variables"],
        layer.HOST: LOOPBACK,
        layer.PORT: str(port),
        "PYTHONPATH": str(folder / "opt" / "python"),
        "TMPDIR": str(folder / "tmp"),
        "AWS_ENDPOINT_URL": deployment.server.url,
        **AWS_CREDENTIALS,
    }
    handler = configuration["Handler"].replace(".", ":")
    return Fleet(handler, folder / "task", environment, start_method="process", function_name="hello")
