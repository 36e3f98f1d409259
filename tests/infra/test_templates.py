"""What the default app's templates say."""

from __future__ import annotations

import json
from typing import Any

from tests.infra.conftest import Synthesized

from emberpool_app.deployment import DATABASE, EXAMPLE, NETWORK, POOL
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.generations import from_secret


def _container(synthesized: Synthesized) -> dict[str, Any]:
    (container,) = synthesized.only(POOL, "AWS::ECS::TaskDefinition")["ContainerDefinitions"]
    result: dict[str, Any] = container
    return result


def test_no_task_dies_without_its_successor_and_failures_roll_back(synthesized: Synthesized) -> None:
    """A deployment starts new tasks first, at most twice as many, and returns to the old ones when they fail."""
    service = synthesized.only(POOL, "AWS::ECS::Service")
    deployment = service["DeploymentConfiguration"]
    assert (deployment["MinimumHealthyPercent"], deployment["MaximumPercent"]) == (100, 200)
    assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    assert service["DesiredCount"] == 2
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


def test_container_is_locked_down(synthesized: Synthesized) -> None:
    """The container runs as a user without rights, on a read-only root, and writes to its run folder only."""
    container = _container(synthesized)
    assert container["User"] not in ("", "0", "root")
    assert container["ReadonlyRootFilesystem"] is True
    (mount,) = container["MountPoints"]
    assert mount == {"ContainerPath": "/run/emberpool", "ReadOnly": False, "SourceVolume": "run"}
    assert container["StopTimeout"] == 120
    task = synthesized.only(POOL, "AWS::ECS::TaskDefinition")
    assert task["RuntimePlatform"]["CpuArchitecture"] == "ARM64"


def test_secrets_are_named_and_not_given(synthesized: Synthesized) -> None:
    """The container gets ARNs: it reads the secrets itself, so that a rotation needs no new task."""
    container = _container(synthesized)
    assert "Secrets" not in container
    named = {each["Name"] for each in container["Environment"]}
    assert {f"EMBERPOOL_PROXY_{name}_SECRET_ARN" for name in ("DATABASE", "CLIENT", "CLIENT_CA")} <= named
    assert not [name for name in named if "PASSWORD" in name or name.endswith("_USER")]


def test_tasks_may_do_with_secrets_what_they_need(synthesized: Synthesized) -> None:
    """They read three; they write the CA, and beside the functions' password; nothing of a secret's own settings."""
    policies = synthesized.resources(POOL, "AWS::IAM::Policy")
    (policy,) = [each for each in policies if "TaskRole" in json.dumps(each["Properties"]["Roles"])]
    allowed: dict[str, set[str]] = {}
    for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
        for resource in _listed(statement["Resource"]):
            (secret,) = [
                name for name in ("ClientSecret", "CaSecret", "MasterUserSecret") if name in json.dumps(resource)
            ]
            allowed.setdefault(secret, set()).update(_listed(statement["Action"]))
    read = {"secretsmanager:GetSecretValue"}
    write, move = "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"
    assert allowed == {"MasterUserSecret": read, "CaSecret": read | {write}, "ClientSecret": read | {write, move}}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_ca_secret_begins_with_what_the_proxy_takes_for_empty(synthesized: Synthesized) -> None:
    """The generated value is one that the proxy writes its CA over, and CloudFormation does so only once."""
    generated = _generator(synthesized, "placeholder")
    value = {**json.loads(generated["SecretStringTemplate"]), generated["GenerateStringKey"]: "aB3"}
    assert from_secret(json.dumps(value), "the secret") == ()


def _generator(synthesized: Synthesized, key: str) -> dict[str, Any]:
    secrets = synthesized.resources(POOL, "AWS::SecretsManager::Secret")
    found = [each["Properties"]["GenerateSecretString"] for each in secrets]
    (generator,) = [each for each in found if each["GenerateStringKey"] == key]
    result: dict[str, Any] = generator
    return result


def test_certificate_is_for_the_name_that_functions_use(synthesized: Synthesized) -> None:
    """The load balancer's name is both the function's host, verified, and the name in the certificate."""
    environment = {each["Name"]: each["Value"] for each in _container(synthesized)["Environment"]}
    function = synthesized.only(EXAMPLE, "AWS::Lambda::Function")["Environment"]["Variables"]
    (balancer, attribute) = environment["EMBERPOOL_PROXY_CLIENT_TLS_HOST_NAMES"]["Fn::GetAtt"]
    assert attribute == "DNSName"
    assert f"{balancer}DNSName" in json.dumps(function["EMBERPOOL_HOST"])
    assert function["EMBERPOOL_SSLMODE"] == "verify-full"


def test_tasks_find_each_other_by_name(synthesized: Synthesized) -> None:
    """ECS registers each task under the name that the tasks look up, with a short life, and they may talk."""
    environment = {each["Name"]: each["Value"] for each in _container(synthesized)["Environment"]}
    zone = synthesized.only(POOL, "AWS::ServiceDiscovery::PrivateDnsNamespace")["Name"]
    registry = synthesized.only(POOL, "AWS::ServiceDiscovery::Service")
    assert environment["EMBERPOOL_PROXY_FLEET_NAME"] == f"{registry['Name']}.{zone}"
    assert registry["DnsConfig"]["DnsRecords"] == [{"TTL": 10, "Type": "A"}]
    assert len(synthesized.only(POOL, "AWS::ECS::Service")["ServiceRegistries"]) == 1
    rules = [each["Properties"] for each in synthesized.resources(POOL, "AWS::EC2::SecurityGroupIngress")]
    between = [rule["FromPort"] for rule in rules if rule["GroupId"] == rule["SourceSecurityGroupId"]]
    assert sorted(between) == [6432, 8080]


def test_no_template_holds_a_secret(synthesized: Synthesized) -> None:
    """Nothing in the whole assembly is a password: secrets are generated in AWS and resolved there."""
    for name, template in synthesized.templates.items():
        text = json.dumps(template)
        assert 'SecretString"' not in text.replace('GenerateSecretString"', ""), name
        for resource in template["Resources"].values():
            for key, value in _leaves(resource.get("Properties", {})):
                if key.lower().endswith("password") and value is not True:  # not: RDS shall manage it
                    assert "{{resolve:secretsmanager:" in json.dumps(value), (name, key)


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        if any(name.startswith("Fn::") or name == "Ref" for name in value):
            return [(key, value)]
        return [leaf for name, each in value.items() for leaf in _leaves(each, name)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in _leaves(each, key)]
    return [(key, value)]


def test_client_secret_is_long_and_needs_no_quoting(synthesized: Synthesized) -> None:
    """The functions' password has at least 256 bits of letters and digits."""
    generated = _generator(synthesized, "password")
    assert generated["PasswordLength"] >= 43
    assert generated["ExcludePunctuation"] is True
    assert json.loads(generated["SecretStringTemplate"]) == {"username": "emberpool"}


def test_load_balancer_is_internal_and_asks_for_readiness(synthesized: Synthesized) -> None:
    """Clients connect on 6432 from inside only; a task gets them when /readyz says so."""
    balancer = synthesized.only(POOL, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert (balancer["Scheme"], balancer["Type"]) == ("internal", "network")
    target = synthesized.only(POOL, "AWS::ElasticLoadBalancingV2::TargetGroup")
    assert (target["HealthCheckProtocol"], target["HealthCheckPort"]) == ("HTTP", "8080")
    assert target["HealthCheckPath"] == "/readyz"
    assert target["TargetType"] == "ip"
    assert {"Key": "deregistration_delay.timeout_seconds", "Value": "15"} in target["TargetGroupAttributes"]


def test_tasks_see_the_functions_own_address(synthesized: Synthesized) -> None:
    """The address is kept, and each function asks one node of the balancer: two could bring the same one twice."""
    attributes = synthesized.only(POOL, "AWS::ElasticLoadBalancingV2::TargetGroup")["TargetGroupAttributes"]
    assert {"Key": "preserve_client_ip.enabled", "Value": "true"} in attributes
    balancer = synthesized.only(POOL, "AWS::ElasticLoadBalancingV2::LoadBalancer")["LoadBalancerAttributes"]
    assert {"Key": "dns_record.client_routing_policy", "Value": "availability_zone_affinity"} in balancer


def test_budget_is_in_the_template_and_in_the_tasks(synthesized: Synthesized) -> None:
    """The terms that each task is told are those that the metadata proves."""
    (service,) = synthesized.resources(POOL, "AWS::ECS::Service")
    metadata = service["Metadata"]["emberpool:ConnectionBudget"]
    assert metadata == synthesized.budget.as_metadata()
    environment = {each["Name"]: each["Value"] for each in _container(synthesized)["Environment"]}
    told = {"MAX_SERVER_CONNECTIONS": "Budget", "MOST_TASKS_ALIVE": "MostTasksAlive"}
    told |= {f"{name}_CONNECTIONS": f"{name.title()}Connections" for name in ("FLOOR", "RESERVED")}
    assert {name: environment[f"EMBERPOOL_PROXY_{name}"] for name in told} == {
        name: str(metadata[term]) for name, term in told.items()
    }
    scaling = synthesized.only(POOL, "AWS::ApplicationAutoScaling::ScalableTarget")
    assert (scaling["MinCapacity"], scaling["MaxCapacity"]) == (metadata["MinTasks"], metadata["MaxTasks"])
    parameters = synthesized.only(DATABASE, "AWS::RDS::DBParameterGroup")["Parameters"]
    assert parameters["max_connections"] == str(metadata["MaxConnections"])


def test_tasks_are_scaled_by_cpu_and_by_clients(synthesized: Synthesized) -> None:
    """Both are averages of the tasks, so that more tasks bring them down; the second is the proxy's own metric."""
    policies = synthesized.resources(POOL, "AWS::ApplicationAutoScaling::ScalingPolicy")
    by_cpu, by_clients = sorted(
        (each["Properties"]["TargetTrackingScalingPolicyConfiguration"] for each in policies),
        key=lambda each: "CustomizedMetricSpecification" in each,
    )
    assert by_cpu["PredefinedMetricSpecification"] == {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"}
    metric = by_clients["CustomizedMetricSpecification"]
    assert (metric["MetricName"], metric["Statistic"]) == ("ClientConnections", "Average")
    environment = {each["Name"]: each["Value"] for each in _container(synthesized)["Environment"]}
    assert metric["Dimensions"] == [{"Name": "Service", "Value": environment["EMBERPOOL_PROXY_METRICS_SERVICE"]}]
    assert by_clients["TargetValue"] == 0.6 * ProxySettings.max_client_connections


def test_database_is_private_and_encrypted(synthesized: Synthesized) -> None:
    """The new database is not reachable from outside, is encrypted, and goes with its stack."""
    instance = synthesized.only(DATABASE, "AWS::RDS::DBInstance")
    assert instance["PubliclyAccessible"] is False
    assert instance["StorageEncrypted"] is True
    (resource,) = synthesized.resources(DATABASE, "AWS::RDS::DBInstance")
    assert resource["DeletionPolicy"] == "Delete"


def test_network_has_no_way_out(synthesized: Synthesized) -> None:
    """There is no NAT gateway and no internet gateway; endpoints for what the tasks and the function call."""
    kinds = {each["Type"] for each in synthesized.templates[NETWORK]["Resources"].values()}
    assert not kinds & {"AWS::EC2::NatGateway", "AWS::EC2::InternetGateway", "AWS::EC2::VPNGateway"}
    endpoints = json.dumps(synthesized.resources(NETWORK, "AWS::EC2::VPCEndpoint"))
    for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", ".s3"):
        assert service in endpoints


def test_function_reaches_the_pool_and_nothing_but_the_pool_the_tasks(synthesized: Synthesized) -> None:
    """Rules lead from the function to the load balancer, from it to the tasks, from them to the database."""
    into_balancer = synthesized.only(EXAMPLE, "AWS::EC2::SecurityGroupIngress")
    assert (into_balancer["FromPort"], into_balancer["ToPort"]) == (6432, 6432)
    assert "HelloSecurityGroup" in json.dumps(into_balancer["SourceSecurityGroupId"])
    ports = {
        each["Properties"]["FromPort"]
        for each in synthesized.resources(POOL, "AWS::EC2::SecurityGroupIngress")
        if "TaskSecurityGroup" in json.dumps(each["Properties"]["GroupId"])
    }
    assert ports == {6432, 8080}
    for group in synthesized.resources(POOL, "AWS::EC2::SecurityGroup"):
        assert not group["Properties"].get("SecurityGroupIngress")
        for rule in group["Properties"].get("SecurityGroupEgress", []):
            # All traffic goes nowhere: it is what the CDK writes for a group without a rule of its own.
            assert rule.get("ToPort") == 443 or rule["CidrIp"] == "255.255.255.255/32"


def test_function_may_read_the_client_secret_only(synthesized: Synthesized) -> None:
    """The function's role reads one secret, the client's; it never gets the database's."""
    policy = synthesized.only(EXAMPLE, "AWS::IAM::Policy")
    statements = policy["PolicyDocument"]["Statement"]
    secrets = [each for each in statements if "secretsmanager:GetSecretValue" in each["Action"]]
    (statement,) = secrets
    assert "ClientSecret" in json.dumps(statement["Resource"])
    assert "Instance" not in json.dumps(statement["Resource"])


def test_outputs_name_what_a_user_needs(synthesized: Synthesized) -> None:
    """Endpoint, layer, client secret, dashboard, function and the lines for one's own are outputs."""
    pool = {name for name in synthesized.templates[POOL]["Outputs"] if not name.startswith("Exports")}
    layer = {"LayerArn", "LayerParameter"}
    assert pool == {"ProxyEndpoint", "ClientSecretArn", "DashboardUrl", "ForYourFunction"} | layer
    assert set(synthesized.templates[EXAMPLE]["Outputs"]) == {"FunctionName", "TryIt", "FunctionUrl", "TryUrl"}


def test_examples_url_is_not_public(synthesized: Synthesized) -> None:
    """Who calls the URL must be allowed to by the account: signatures are verified, and no permission is given."""
    assert synthesized.only(EXAMPLE, "AWS::Lambda::Url")["AuthType"] == "AWS_IAM"
    assert not synthesized.resources(EXAMPLE, "AWS::Lambda::Permission")


def test_everything_goes_with_its_stack(synthesized: Synthesized) -> None:
    """No resource of the default app is kept when its stack is deleted: nothing goes on costing money."""
    for name, template in synthesized.templates.items():
        kept = [key for key, each in template["Resources"].items() if each.get("DeletionPolicy") == "Retain"]
        assert not kept, name


def test_default_app_synthesizes_without_a_warning_of_ours(synthesized: Synthesized) -> None:
    """A user's first synth has nothing to say that they did not ask for; what the example accepts is acknowledged."""
    notes = [path.read_text() for path in synthesized.folder.glob("*.json") if "template" not in path.name]
    assert any("aws:cdk:" in text for text in notes)
    assert not [text for text in notes if "emberpool:no-reserved" in text or "emberpool:long-wait" in text]
