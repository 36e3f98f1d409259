"""Who may do what, and who reaches whom, in all templates of ours: each exception is named here with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.infra.checked_apps import VARIANTS, our_app, templates, users_app
from tests.infra.conftest import Template

# What is allowed on every resource. An endpoint's policy only narrows: it gives nobody a permission.
WITHOUT_A_RESOURCE = {
    ("AWS::IAM::Policy", "ecr:GetAuthorizationToken"): "logs in to the account's registry, and knows no resource",
    ("AWS::EC2::VPCEndpoint", "logs:CreateLogStream"): "of this account; the roles name their log group",
    ("AWS::EC2::VPCEndpoint", "logs:PutLogEvents"): "of this account; the roles name their log group",
    ("AWS::EC2::VPCEndpoint", "secretsmanager:GetSecretValue"): "of this account; the roles name their secrets",
    ("AWS::EC2::VPCEndpoint", "secretsmanager:PutSecretValue"): "of this account; the roles name their secrets",
    ("AWS::EC2::VPCEndpoint", "secretsmanager:UpdateSecretVersionStage"): "of this account; the roles name theirs",
}
# What ends in a star: everything below the part that is named.
BELOW_A_NAME = {("AWS::EC2::VPCEndpoint", "s3:GetObject"): "the layers of images, in the bucket where ECR keeps them"}
MANAGED = {"AWSLambdaBasicExecutionRole", "AWSLambdaVPCAccessExecutionRole"}  # as the CDK makes functions
EVERYBODY = ("0.0.0.0/0", "::/0")
HTTPS = 443
# The CDK's words for "no egress at all": ICMP to an address that is none.
NOWHERE = "255.255.255.255/32"


@dataclass(frozen=True)
class Statement:
    """A statement of a policy, as far as it is looked at here."""

    resource_type: str
    logical_id: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    text: dict[str, Any]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """The templates of our app in all variants."""
    made = {variant: templates(our_app(tmp_path_factory.mktemp(variant), variant)) for variant in VARIANTS}
    return {f"{variant}/{name}": template for variant, stacks in made.items() for name, template in stacks.items()}


@pytest.fixture(scope="module")
def everything(ours: dict[str, Template], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Those, and the templates of a user's app, in which the key's own policy is the user's."""
    users = {endpoint: templates(users_app(tmp_path_factory.mktemp(endpoint), endpoint)) for endpoint in ("nlb", "dns")}
    return {**ours, **{f"user/{endpoint}": stacks["Users"] for endpoint, stacks in users.items()}}


def _resources(everything: dict[str, Template], *kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name}/{logical_id}", resource["Properties"])
        for name, template in everything.items()
        for logical_id, resource in template["Resources"].items()
        if resource["Type"] in kinds
    ]


def _policies(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "Statement" in value:
            yield value
        for each in value.values():
            yield from _policies(each)
    elif isinstance(value, list):
        for each in value:
            yield from _policies(each)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_text(arn: Any) -> str:
    return arn if isinstance(arn, str) else json.dumps(arn)


def _statements(everything: dict[str, Template]) -> list[Statement]:
    found = []
    for name, template in everything.items():
        for logical_id, resource in template["Resources"].items():
            if resource["Type"] == "AWS::KMS::Key":  # the user's: what they may do with their own key
                continue
            for policy in _policies(resource.get("Properties", {})):
                found += [
                    Statement(
                        resource["Type"],
                        f"{name}/{logical_id}",
                        tuple(_listed(each["Action"])),
                        tuple(_as_text(arn) for arn in _listed(each.get("Resource", []))),
                        each,
                    )
                    for each in policy["Statement"]
                ]
    return found


def test_no_statement_allows_actions_by_a_star(everything: dict[str, Template]) -> None:
    """Every action is named in full, and no statement says what it does not apply to."""
    statements = _statements(everything)
    assert len(statements) > 50
    for each in statements:
        assert not [action for action in each.actions if "*" in action], each
        assert not {"NotAction", "NotResource", "NotPrincipal"} & set(each.text), each


def test_every_star_for_resources_is_explained(everything: dict[str, Template]) -> None:
    """What is allowed on all resources, or on all below a name, is what the tables above give a reason for."""
    whole, below = set(), set()
    for each in _statements(everything):
        named = {(each.resource_type, action) for action in each.actions}
        whole |= named if "*" in each.resources else set()
        below |= named if any("*" in arn and arn != "*" for arn in each.resources) else set()
    assert whole == set(WITHOUT_A_RESOURCE)
    assert below == set(BELOW_A_NAME)


def test_nothing_is_for_everybody_but_of_this_account(everything: dict[str, Template]) -> None:
    """Only endpoints speak of anybody: of this account, or of the layers of images."""
    for each in _statements(everything):
        if each.text.get("Principal") in ("*", {"AWS": "*"}):
            assert each.resource_type == "AWS::EC2::VPCEndpoint", each
            of_this_account = {"StringEquals": {"aws:PrincipalAccount": {"Ref": "AWS::AccountId"}}}
            assert each.text.get("Condition") == of_this_account or each.actions == ("s3:GetObject",), each
    for name, permission in _resources(everything, "AWS::Lambda::Permission"):
        assert permission["Principal"] != "*", name
    for name, url in _resources(everything, "AWS::Lambda::Url"):
        assert url["AuthType"] == "AWS_IAM", name


def test_roles_have_no_policies_of_aws_but_those_of_a_function(everything: dict[str, Template]) -> None:
    """The tasks' and the flow log's roles have statements of their own only."""
    for name, role in _resources(everything, "AWS::IAM::Role"):
        used = {_as_text(each).rsplit("/", 1)[-1].rstrip('"]}') for each in role.get("ManagedPolicyArns", [])}
        assert used <= (MANAGED if "lambda" in json.dumps(role["AssumeRolePolicyDocument"]) else set()), name


def test_nobody_gets_in_from_everywhere(everything: dict[str, Template]) -> None:
    """Each rule lets in a security group, or this VPC's own addresses; none of them an address from outside."""
    rules = _resources(everything, "AWS::EC2::SecurityGroupIngress")
    for name, group in _resources(everything, "AWS::EC2::SecurityGroup"):
        rules += [(name, rule) for rule in group.get("SecurityGroupIngress", [])]
    assert len(rules) > 20
    for name, rule in rules:
        assert rule["IpProtocol"] == "tcp", name
        if "SourceSecurityGroupId" in rule:
            continue
        source = rule.get("CidrIp") or rule.get("CidrIpv6")
        assert source not in EVERYBODY, name
        assert "Vpc" in json.dumps(source), name
        assert "Cidr" in json.dumps(source), name


def test_ways_out_by_address_are_https_only(everything: dict[str, Template]) -> None:
    """Everything but AWS's own endpoints is reached by its security group, the database too."""
    rules = _resources(everything, "AWS::EC2::SecurityGroupEgress")
    for name, group in _resources(everything, "AWS::EC2::SecurityGroup"):
        if "Database" not in name:  # the database's own group: RDS opens no connections
            rules += [(name, rule) for rule in group.get("SecurityGroupEgress", [])]
    for name, rule in rules:
        if "DestinationSecurityGroupId" not in rule and rule.get("CidrIp") != NOWHERE:
            assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", HTTPS, HTTPS), name


def test_templates_have_no_secret(everything: dict[str, Template]) -> None:
    """Secrets are generated in AWS: no value is in a template, and what needs one names where it is."""
    for name, secret in _resources(everything, "AWS::SecretsManager::Secret"):
        assert "SecretString" not in secret, name
    for name, instance in _resources(everything, "AWS::RDS::DBInstance"):
        password = json.dumps(instance.get("MasterUserPassword", "{{resolve:secretsmanager:"))
        assert "{{resolve:secretsmanager:" in password, name
    for name, template in everything.items():
        for key, value in _environment(template):
            if any(word in key for word in ("PASSWORD", "SECRET", "TOKEN", "PRIVATE")):
                assert key.endswith(("_ARN", "_ARNS")), (name, key)
                assert not isinstance(value, str) or value.startswith("arn:"), (name, key)


def _environment(template: Template) -> Iterator[tuple[str, Any]]:
    for resource in template["Resources"].values():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::Lambda::Function":
            yield from properties.get("Environment", {}).get("Variables", {}).items()
        for container in properties.get("ContainerDefinitions", []):
            yield from ((each["Name"], each["Value"]) for each in container["Environment"])


def test_secrets_of_who_synthesizes_stay_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the environment of `cdk synth` is in no file of the assembly, assets and tree included."""
    canary = "never-in-an-assembly-7c1e"
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD", "EMBERPOOL_PROXY_DATABASE_PASSWORD"):
        monkeypatch.setenv(variable, canary)
    folder = Path(our_app(tmp_path, "existing").synth().directory)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in files)
    assert not [path for path in files if canary.encode() in path.read_bytes()]
