"""The whole way of a deployment by the real cdk command: only AWS's own services are simulated."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from emberpool_local.aws import deploy_local
from emberpool_local.aws.deploy_local import Deployment, deployed, show
from emberpool_local.aws.deployed import created, left_over
from emberpool_local.errors import DeployUnavailable


@pytest.fixture(scope="module")
def deployment(checkout: Path) -> Iterator[Deployment]:
    """The default app after synth, bootstrap, deploy and an empty diff; leaving it destroys it and checks the rest."""
    with deployed(checkout) as standing:
        yield standing


# One worker runs all of these: the deployment is made once.


def test_service_runs_the_proxy_with_its_secrets(deployment: Deployment) -> None:
    """ECS has the service with two tasks, which Cloud Map registers, and the secrets that a task reads exist."""
    ecs, secrets = deployment.server.client("ecs"), deployment.server.client("secretsmanager")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    (arn,) = ecs.list_services(cluster=cluster)["serviceArns"]
    (service,) = ecs.describe_services(cluster=cluster, services=[arn])["services"]
    assert service["desiredCount"] == 2
    task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
    variables = {each["name"]: each["value"] for each in task["containerDefinitions"][0]["environment"]}
    members = {"DATABASE": {"username", "password"}, "CLIENT": {"username", "password"}, "CLIENT_CA": {"placeholder"}}
    for name, needed in members.items():
        arn = variables[f"EMBERPOOL_PROXY_{name}_SECRET_ARN"]
        assert needed <= set(json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])), name
    (registry,) = deployment.server.client("servicediscovery").list_services()["Services"]
    assert [each["registryArn"] for each in service["serviceRegistries"]] == [registry["Arn"]]


def test_client_secret_is_random_and_plain(deployment: Deployment) -> None:
    """The password that was generated has 48 letters and digits."""
    outputs = json.loads(deployment.command.outputs_file.read_text())["EmberpoolPool"]
    client = deployment.server.client("secretsmanager")
    secret = json.loads(client.get_secret_value(SecretId=outputs["ClientSecretArn"])["SecretString"])
    assert secret["username"] == "emberpool"
    assert len(secret["password"]) == 48
    assert secret["password"].isalnum()


def test_layer_that_was_published_has_emberpool_and_psycopg(deployment: Deployment) -> None:
    """The zip that Lambda would unpack holds both packages, for arm64."""
    outputs = json.loads(deployment.command.outputs_file.read_text())["EmberpoolPool"]
    _, name, version = outputs["LayerArn"].rsplit(":", 2)
    layer = deployment.server.client("lambda").get_layer_version(LayerName=name, VersionNumber=int(version))
    content = _published(deployment, layer["Content"]["CodeSha256"])
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert {"python/emberpool/handler.py", "python/emberpool/settings.py", "python/psycopg/__init__.py"} <= set(names)
    assert any(name.startswith("python/psycopg_binary/") and "aarch64" in name for name in names)
    assert not [name for name in names if name.startswith(("python/emberpool_cdk", "python/emberpool_proxy"))]


def _published(deployment: Deployment, sha256: str) -> bytes:
    # moto gives no address for a layer's content: take what cdk uploaded, by the hash that Lambda computed.
    bucket = deployment.server.client("s3")
    (assets,) = [each["Name"] for each in bucket.list_buckets()["Buckets"]]
    for item in bucket.list_objects_v2(Bucket=assets)["Contents"]:
        content: bytes = bucket.get_object(Bucket=assets, Key=item["Key"])["Body"].read()
        if base64.b64encode(hashlib.sha256(content).digest()).decode() == sha256:
            return content
    raise AssertionError("nothing that was uploaded has the layer's hash")


def test_function_is_told_where_the_pool_is(deployment: Deployment) -> None:
    """The function's environment has the load balancer's real name and the secret's ARN."""
    outputs = json.loads(deployment.command.outputs_file.read_text())
    functions = deployment.server.client("lambda")
    name = outputs["EmberpoolExample"]["FunctionName"]
    found = functions.get_function_configuration(FunctionName=name)
    variables = found["Environment"]["Variables"]
    (balancer,) = deployment.server.client("elbv2").describe_load_balancers()["LoadBalancers"]
    assert variables["EMBERPOOL_HOST"] == balancer["DNSName"]
    assert variables["EMBERPOOL_SECRET_ARN"] == outputs["EmberpoolPool"]["ClientSecretArn"]
    assert variables["EMBERPOOL_SSLMODE"] == "verify-full"
    assert len(found["Layers"]) == 1


def test_dashboard_and_alarms_stand(deployment: Deployment) -> None:
    """CloudWatch has the dashboard under the name of the output's link, and each alarm with its way to the runbook."""
    cloudwatch = deployment.server.client("cloudwatch")
    (dashboard,) = cloudwatch.list_dashboards()["DashboardEntries"]
    outputs = json.loads(deployment.command.outputs_file.read_text())["EmberpoolPool"]
    assert outputs["DashboardUrl"].endswith(f"#dashboards:name={dashboard['DashboardName']}")
    json.loads(cloudwatch.get_dashboard(DashboardName=dashboard["DashboardName"])["DashboardBody"])
    alarms = [
        each for each in cloudwatch.describe_alarms()["MetricAlarms"] if "runbook.md#" in each["AlarmDescription"]
    ]
    assert len(alarms) == 11
    (no_task,) = [each for each in alarms if each["Namespace"] == "AWS/NetworkELB"]
    dimensions = {each["Name"]: each["Value"] for each in no_task["Dimensions"]}
    (group,) = deployment.server.client("elbv2").describe_target_groups()["TargetGroups"]
    assert group["TargetGroupArn"].endswith(dimensions["TargetGroup"])


def test_what_was_created_is_shown(deployment: Deployment) -> None:
    """The printed table names every kind of resource, the outputs, and what the simulation left out."""
    out = io.StringIO()
    show(deployment, Console(file=out, width=200))
    text = out.getvalue()
    for word in ("ECS service", "task definition", "load balancer", "layer", "function", "database"):
        assert word in text
    assert "EmberpoolPool.ProxyEndpoint" in text
    assert "Not simulated at all" in text
    kinds = {row.kind for row in created(deployment.command, deployment.server)}
    assert "security group rule" in kinds


def test_simulation_leaves_out_only_what_is_known(deployment: Deployment) -> None:
    """No property was dropped and no type was unknown; moto's one no-op is the bootstrap bucket's policy."""
    assert {(gap.kind, gap.type) for gap in deployment.server.gaps()} == {("skipped", "AWS::S3::BucketPolicy")}


def test_what_stands_would_be_noticed_after_a_destruction(deployment: Deployment) -> None:
    """The check that nothing is left sees what stands now: it can fail."""
    kinds = {row.kind for row in left_over(deployment.server)}
    assert {"stack", "VPC", "security group", "secret", "log group", "layer", "ECS service", "function"} <= kinds
    assert {"subnet", "route table", "endpoint", "role", "load balancer", "database"} <= kinds
    assert {"namespace", "Cloud Map service", "alarm", "dashboard"} <= kinds
    with pytest.raises(DeployUnavailable, match="left .* resources behind"):
        deploy_local._check_nothing_left(deployment.server)
