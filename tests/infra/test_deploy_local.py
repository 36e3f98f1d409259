"""The whole way of a deployment by the real cdk command: only AWS's own services are simulated."""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.infra.deployed_function import (
    AWS_CREDENTIALS,
    deployed_function,
    deployed_proxy,
    layer_zip,
    outputs,
    task_settings,
)
from tests.infra.deployed_inventory import Reading, changed_paths, inventory
from tests.infra.lambda_python import python_of_lambda

from emberpool_app.deployment import EXAMPLE, POOL
from emberpool_cdk.layer_build import RUNTIMES
from emberpool_cdk.layer_bytecode import find_compiler
from emberpool_local.aws import deploy_local
from emberpool_local.aws.deploy_local import Deployment, deployed, show
from emberpool_local.aws.deployed import created, left_over
from emberpool_local.errors import DeployUnavailable
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres

THIS_MACHINE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
OTHER_MACHINE = "x86_64" if THIS_MACHINE == "arm64" else "arm64"
# The last of Lambda's runtimes whose Python this machine has, or can get: what is deployed for it can be run here.
RUNTIME = ([each for each in RUNTIMES if find_compiler(each.removeprefix("python"))] or RUNTIMES)[-1]
FIRST = [f"architecture={OTHER_MACHINE}", f"runtime={RUNTIME}"]
SECOND = [f"architecture={THIS_MACHINE}", f"runtime={RUNTIME}", "maxTasks=6"]
URL_EVENT = {
    "version": "2.0",
    "rawPath": "/",
    "rawQueryString": "",
    "headers": {"accept": "application/json"},
    "requestContext": {"http": {"method": "GET", "path": "/", "sourceIp": "192.0.2.1"}, "requestId": "1"},
    "isBase64Encoded": False,
}


@pytest.fixture(scope="module")
def deployment(checkout: Path) -> Iterator[Deployment]:
    """The default app after synth, bootstrap, deploy and an empty diff; leaving it destroys it and checks the rest."""
    with deployed(checkout, context=FIRST) as standing:
        yield standing


@dataclass(frozen=True)
class Changed:
    """What stood after the first deployment and after the second."""

    before: Reading
    after: Reading

    @property
    def paths(self) -> set[str]:
        """Where they differ, without names that moto generates and without what follows from a new layer version."""
        found = {re.sub(r"-[A-Z0-9]{10,13}(?=/|$)", "", path) for path in changed_paths(self.before, self.after)}
        return {re.sub(r"^(/Layers/[^/]+)/.*", r"\1", path) for path in found}


@pytest.fixture(scope="module")
def changed(deployment: Deployment) -> Changed:
    """A second deployment of the same app, for another architecture and with more tasks, over the first one."""
    before = inventory(deployment)
    deployment.update(SECOND)
    return Changed(before, inventory(deployment))


# One worker runs all of these, in this order: each deployment is made once.


def test_service_runs_the_proxy_with_its_secrets(deployment: Deployment) -> None:
    """ECS has the service with two tasks, which Cloud Map registers, and the secrets that a task reads exist."""
    ecs, secrets = deployment.server.client("ecs"), deployment.server.client("secretsmanager")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    (arn,) = ecs.list_services(cluster=cluster)["serviceArns"]
    (service,) = ecs.describe_services(cluster=cluster, services=[arn])["services"]
    assert service["desiredCount"] == 2
    rolling = service["deploymentConfiguration"]
    assert (rolling["minimumHealthyPercent"], rolling["maximumPercent"]) == (100, 200)
    assert rolling["deploymentCircuitBreaker"] == {"enable": True, "rollback": True}
    variables = task_settings(deployment)
    members = {"DATABASE": {"username", "password"}, "CLIENT": {"username", "password"}, "CLIENT_CA": {"placeholder"}}
    for name, needed in members.items():
        arn = variables[f"EMBERPOOL_PROXY_{name}_SECRET_ARN"]
        assert needed <= set(json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])), name
    (registry,) = deployment.server.client("servicediscovery").list_services()["Services"]
    assert [each["registryArn"] for each in service["serviceRegistries"]] == [registry["Arn"]]


def test_task_is_locked_down(deployment: Deployment) -> None:
    """What ECS was given is a read-only root, a user without rights, one volume and the stop timeout."""
    ecs = deployment.server.client("ecs")
    (arn,) = ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"]
    task = ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]
    (container,) = task["containerDefinitions"]
    assert (task["cpu"], task["memory"], task["networkMode"]) == ("512", "1024", "awsvpc")
    assert (container["user"], container["readonlyRootFilesystem"], container["stopTimeout"]) == ("10001", True, 120)
    assert container["mountPoints"] == [{"containerPath": "/run/emberpool", "readOnly": False, "sourceVolume": "run"}]
    assert [each["containerPort"] for each in container["portMappings"]] == [6432, 8080]
    assert task["runtimePlatform"]["cpuArchitecture"] == OTHER_MACHINE.upper()


def test_client_secret_is_random_and_plain(deployment: Deployment) -> None:
    """The password that was generated has 48 letters and digits."""
    client = deployment.server.client("secretsmanager")
    arn = outputs(deployment, POOL)["ClientSecretArn"]
    secret = json.loads(client.get_secret_value(SecretId=arn)["SecretString"])
    assert secret["username"] == "emberpool"
    assert len(secret["password"]) == 48
    assert secret["password"].isalnum()


def test_layer_that_was_published_has_emberpool_and_psycopg(deployment: Deployment) -> None:
    """The zip that Lambda would unpack holds both packages, for the architecture that was asked for."""
    names = layer_zip(deployment, outputs(deployment, POOL)["LayerArn"]).namelist()
    assert {"python/emberpool/handler.py", "python/emberpool/settings.py", "python/psycopg/__init__.py"} <= set(names)
    machine = {"arm64": "aarch64", "x86_64": "x86_64"}[OTHER_MACHINE]
    assert any(name.startswith("python/psycopg_binary/") and machine in name for name in names)
    assert not [name for name in names if name.startswith(("python/emberpool_cdk", "python/emberpool_proxy"))]


def test_layer_is_found_by_its_parameter(deployment: Deployment) -> None:
    """The SSM parameter that other stacks read has the ARN of the layer version that stands."""
    given = outputs(deployment, POOL)
    (parameter,) = deployment.server.client("ssm").get_parameters(Names=[given["LayerParameter"]])["Parameters"]
    assert parameter["Value"] == given["LayerArn"]


def test_function_is_told_where_the_pool_is(deployment: Deployment) -> None:
    """The function's environment has the load balancer's real name and the secret's ARN."""
    found = _function(deployment)
    variables = found["Environment"]["Variables"]
    (balancer,) = deployment.server.client("elbv2").describe_load_balancers()["LoadBalancers"]
    assert variables["EMBERPOOL_HOST"] == balancer["DNSName"]
    assert variables["EMBERPOOL_SECRET_ARN"] == outputs(deployment, POOL)["ClientSecretArn"]
    assert variables["EMBERPOOL_SSLMODE"] == "verify-full"
    assert len(found["Layers"]) == 1


def _function(deployment: Deployment) -> dict[str, Any]:
    name = outputs(deployment, EXAMPLE)["FunctionName"]
    found: dict[str, Any] = deployment.server.client("lambda").get_function_configuration(FunctionName=name)
    return found


def test_url_asks_who_calls_and_the_output_says_how(deployment: Deployment) -> None:
    """The example's URL wants signed requests, and the command that is printed signs them for Lambda."""
    given = outputs(deployment, EXAMPLE)
    url = deployment.server.client("lambda").get_function_url_config(FunctionName=given["FunctionName"])
    assert (url["AuthType"], url["FunctionUrl"]) == ("AWS_IAM", given["FunctionUrl"])
    command = shlex.split(given["TryUrl"])
    assert command[:3] == ["curl", "--aws-sigv4", "aws:amz:us-east-1:lambda"]
    assert command[-1] == given["FunctionUrl"]


def test_security_groups_lead_from_the_function_to_the_database(deployment: Deployment) -> None:
    """Each step has its rule on both sides, and no group of ours lets anybody else in."""
    groups = deployment.server.client("ec2").describe_security_groups()["SecurityGroups"]
    names = {each["GroupId"]: each["Description"] for each in groups}
    into, out = (
        {
            (names[group["GroupId"]], rule.get("FromPort"), names[pair["GroupId"]])
            for group in groups
            for rule in group[side]
            for pair in rule["UserIdGroupPairs"]
            if names[group["GroupId"]] != "default VPC security group"
        }
        for side in ("IpPermissions", "IpPermissionsEgress")
    )
    function = next(name for name in names.values() if name.startswith("Automatic security group for Lambda"))
    balancer, tasks, database = (f"emberpool: {name}" for name in ("functions", "proxy tasks", "the database"))
    assert {
        (balancer, 6432, function),
        (tasks, 6432, balancer),
        (tasks, 8080, balancer),
        (tasks, 6432, tasks),
        (tasks, 8080, tasks),
        (database, 5432, tasks),
    } == {rule for rule in into if rule[0].startswith("emberpool: ") and "endpoint" not in rule[0]}
    assert {
        (function, 6432, balancer),
        (balancer, 6432, tasks),
        (balancer, 8080, tasks),
        (tasks, 6432, tasks),
        (tasks, 8080, tasks),
        (tasks, 5432, database),
    } <= out


def test_dashboard_and_alarms_stand(deployment: Deployment) -> None:
    """CloudWatch has the dashboard under the name of the output's link, and each alarm with its way to the runbook."""
    cloudwatch = deployment.server.client("cloudwatch")
    (dashboard,) = cloudwatch.list_dashboards()["DashboardEntries"]
    assert outputs(deployment, POOL)["DashboardUrl"].endswith(f"#dashboards:name={dashboard['DashboardName']}")
    json.loads(cloudwatch.get_dashboard(DashboardName=dashboard["DashboardName"])["DashboardBody"])
    alarms = [
        each for each in cloudwatch.describe_alarms()["MetricAlarms"] if "runbook.md#" in each["AlarmDescription"]
    ]
    assert len(alarms) == 12
    (no_task,) = [each for each in alarms if each["Namespace"] == "AWS/NetworkELB"]
    dimensions = {each["Name"]: each["Value"] for each in no_task["Dimensions"]}
    (group,) = deployment.server.client("elbv2").describe_target_groups()["TargetGroups"]
    assert group["TargetGroupArn"].endswith(dimensions["TargetGroup"])


def test_what_was_created_is_shown(deployment: Deployment) -> None:
    """The printed table names every kind of resource, the outputs, and what the simulation left out."""
    out = io.StringIO()
    show(deployment, Console(file=out, width=200))
    text = out.getvalue()
    for word in ("ECS service", "task definition", "load balancer", "layer", "function URL", "database"):
        assert word in text
    assert "EmberpoolPool.ProxyEndpoint" in text
    assert "Not simulated at all" in text
    kinds = {row.kind for row in created(deployment.command, deployment.server)}
    assert "security group rule" in kinds


def test_three_lines_let_a_function_of_ones_own_in(deployment: Deployment) -> None:
    """The output's commands, with the names filled in, are what AWS takes: layer, permission and network."""
    client = deployment.server.client
    with _own_function(deployment) as names:
        text = outputs(deployment, POOL)["ForYourFunction"]
        for placeholder, name in names.items():
            text = text.replace(placeholder, name)
        lines = [shlex.split(line) for line in text.splitlines()]
        change, grant, rule = (dict(zip(line[3::2], line[4::2], strict=True)) for line in lines)
        assert [" ".join(line[:3]) for line in lines] == [
            "aws lambda update-function-configuration",
            "aws iam put-role-policy",
            "aws ec2 authorize-security-group-ingress",
        ]
        found = client("lambda").update_function_configuration(
            FunctionName=change["--function-name"],
            Layers=[change["--layers"]],
            Environment=json.loads(change["--environment"]),
        )
        assert found["Environment"]["Variables"] == _function(deployment)["Environment"]["Variables"]
        client("iam").put_role_policy(
            RoleName=grant["--role-name"],
            PolicyName=grant["--policy-name"],
            PolicyDocument=grant["--policy-document"],
        )
        port = int(rule["--port"])
        permission = {"IpProtocol": rule["--protocol"], "FromPort": port, "ToPort": port}
        permissions = [{**permission, "UserIdGroupPairs": [{"GroupId": rule["--source-group"]}]}]
        opened = {"GroupId": rule["--group-id"], "IpPermissions": permissions}
        client("ec2").authorize_security_group_ingress(**opened)
        client("ec2").revoke_security_group_ingress(**opened)


@contextmanager
def _own_function(deployment: Deployment) -> Iterator[dict[str, str]]:
    """A function that no stack has made: the names for the output's commands."""
    client = deployment.server.client
    role = client("iam").create_role(RoleName="theirs", AssumeRolePolicyDocument="{}")["Role"]
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.py", "")
    client("lambda").create_function(
        FunctionName="theirs", Role=role["Arn"], Runtime=RUNTIME, Handler="i.h", Code={"ZipFile": code.getvalue()}
    )
    group = client("ec2").create_security_group(GroupName="theirs", Description="theirs")["GroupId"]
    try:
        yield {"YOUR_FUNCTION": "theirs", "ITS_ROLE": "theirs", "ITS_SECURITY_GROUP": group}
    finally:
        client("ec2").delete_security_group(GroupId=group)
        client("lambda").delete_function(FunctionName="theirs")
        for policy in client("iam").list_role_policies(RoleName="theirs")["PolicyNames"]:
            client("iam").delete_role_policy(RoleName="theirs", PolicyName=policy)
        client("iam").delete_role(RoleName="theirs")


def test_second_deployment_changes_what_was_asked_and_nothing_else(changed: Changed) -> None:
    """More tasks and another architecture arrive everywhere; the database, the network and every secret stay."""
    pool, function = "EmberpoolPool", "EmberpoolExample-Hello4A628BD4"
    assert changed.paths == {
        "/Service/taskDefinition",
        "/Task/taskDefinitionArn",
        "/Task/revision",
        "/Task/containerDefinitions/image",
        "/Task/containerDefinitions/environment/EMBERPOOL_PROXY_MOST_TASKS_ALIVE",
        "/Task/runtimePlatform/cpuArchitecture",
        f"/ScalableTargets/service/{pool}-PoolCluster957C8841/{pool}-PoolService0732D25C/MaxCapacity",
        f"/Functions/{function}/Architectures/0",
        f"/Functions/{function}/Layers/0/Arn",
        f"/Functions/{function}/Layers/0/CodeSize",
        f"/MetricAlarms/{pool}-MonitoringBudgetNearC469BBEF/AlarmDescription",
        f"/MetricAlarms/{pool}-MonitoringBudgetNearC469BBEF/Threshold",
        f"/Dashboards/{pool}-MonitoringDashboard0C3675C6/widgets/0/properties/markdown",
        "/Parameters//emberpool/layer-arn",
        *(path for path in changed.paths if path.startswith("/Layers/")),
    }
    (capacity,) = [value for path, value in changed.after.items() if path.endswith("/MaxCapacity")]
    assert capacity == 6
    assert changed.after["/Task/containerDefinitions/environment/EMBERPOOL_PROXY_MOST_TASKS_ALIVE"] == "18"
    assert changed.after["/Task/runtimePlatform/cpuArchitecture"] == THIS_MACHINE.upper()


def test_replaced_layer_is_gone_and_the_parameter_has_the_new_one(deployment: Deployment, changed: Changed) -> None:
    """There is one version of each layer again, the function has it, and the parameter names the pool stack's."""
    layers = deployment.server.client("lambda").list_layers()["Layers"]
    arns = {each["LatestMatchingVersion"]["LayerVersionArn"] for each in layers}
    assert len(arns) == 2
    assert changed.after["/Parameters//emberpool/layer-arn"] == outputs(deployment, POOL)["LayerArn"]
    assert {outputs(deployment, POOL)["LayerArn"], *(each["Arn"] for each in _function(deployment)["Layers"])} == arns


async def test_deployed_function_answers_through_the_deployed_proxy(
    deployment: Deployment,
    changed: Changed,
    postgres: EmbeddedPostgres,
    pgbouncer_program: PgbouncerProgram,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The uploaded zips run under AWS's runtime client and answer by the deployed secrets, invoked plainly or by URL.

    They are the second deployment's, which is for this machine's architecture.
    The proxy runs by its task definition's environment: it reads its secrets, makes the CA and publishes it, and the
    function verifies it.
    """
    assert changed.paths
    for name, value in {**deployment.server.environment(), **AWS_CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    with deployed_proxy(deployment, postgres, pgbouncer_program) as proxy:
        # Environments are started with the Python that runs us: here with one that has only what Lambda ships.
        monkeypatch.setattr(sys, "executable", str(python_of_lambda(RUNTIME, tmp_path / "python")))
        async with deployed_function(deployment, _function(deployment), proxy.port, tmp_path) as fleet:
            plain = await fleet.invoke(b"{}")
            by_url = await fleet.invoke(json.dumps(URL_EVENT).encode())
    assert plain.status == "succeeded", f"{plain.error_message}\n{plain.log}"
    answer = json.loads(plain.payload)
    assert answer["postgresql"][0].isdigit()
    assert answer["connections"] >= 1
    page = json.loads(by_url.payload)
    assert (page["statusCode"], page["headers"]["content-type"]) == (200, "application/json")
    assert json.loads(page["body"])["postgresql"] == answer["postgresql"]


def test_simulation_leaves_out_only_what_is_known(deployment: Deployment) -> None:
    """No property was dropped and no type was unknown; moto's one no-op is the bootstrap bucket's policy."""
    assert {(gap.kind, gap.type) for gap in deployment.server.gaps()} == {("skipped", "AWS::S3::BucketPolicy")}


def test_what_stands_would_be_noticed_after_a_destruction(deployment: Deployment) -> None:
    """The check that nothing is left sees what stands now: it can fail."""
    kinds = {row.kind for row in left_over(deployment.server)}
    assert {"stack", "VPC", "security group", "secret", "log group", "layer", "ECS service", "function"} <= kinds
    assert {"subnet", "route table", "endpoint", "role", "load balancer", "database", "function URL"} <= kinds
    assert {"namespace", "Cloud Map service", "alarm", "dashboard", "parameter", "task definition"} <= kinds
    assert {"parameter group", "subnet group", "scalable target"} <= kinds
    with pytest.raises(DeployUnavailable, match="left .* resources behind"):
        deploy_local._check_nothing_left(deployment.server)
