"""A KMS key of the user's: what is encrypted with it, what its policy says then, and who may use it for what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Annotations, Match
from tests.infra.conftest import Synthesized, Template, make_app

from emberpool_cdk import PoolDatabase, PoolProxy
from emberpool_cdk.pool_encryption import FOREIGN_KEY

FOREIGN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
VIA_SECRETS_MANAGER = {
    "StringEquals": {
        "kms:ViaService": {
            "Fn::Join": ["", ["secretsmanager.", {"Ref": "AWS::Region"}, ".", {"Ref": "AWS::URLSuffix"}]]
        }
    }
}


class Users:
    """A user's app: a pool in the stack "Users", whose key is made there, in another stack, or elsewhere."""

    def __init__(self, folder: Path, where: str = "here", **pool: Any) -> None:
        self.app = make_app(folder)
        self.stack = Stack(self.app, "Users")
        self.keys = Stack(self.app, "Keys") if where == "other stack" else self.stack
        self.key = kms.Key.from_key_arn(self.stack, "Imported", FOREIGN)
        if where != "imported":
            self.key = kms.Key(self.keys, "TheKey")
        self.vpc = ec2.Vpc(self.stack, "Vpc", max_azs=2, nat_gateways=1)
        self.pool = self.make_pool(self.stack, self.vpc, **pool)

    def make_pool(self, stack: Stack, vpc: ec2.IVpc, **more: Any) -> PoolProxy:
        secret = secretsmanager.Secret.from_secret_name_v2(stack, "Secret", "theirs")
        host = f"{stack.stack_name}.example.com"
        database = PoolDatabase(host=host, name="shop", secret=secret, max_connections=200)
        return PoolProxy(stack, "Pool", vpc=vpc, database=database, encryption_key=self.key, **more)

    def attach(self, stack: Stack) -> None:
        self.pool.attach(
            lambda_.Function(
                stack,
                "Function",
                runtime=lambda_.Runtime.PYTHON_3_13,
                architecture=lambda_.Architecture.ARM_64,
                handler="index.handler",
                code=lambda_.Code.from_inline("def handler(event, context): ..."),
                vpc=self.vpc,
            )
        )

    def templates(self) -> dict[str, Template]:
        assembly = self.app.synth()
        return {each.stack_name: each.template for each in assembly.stacks}

    def warnings(self) -> list[str]:
        found = Annotations.from_stack(self.stack).find_warning("*", Match.string_like_regexp(FOREIGN_KEY))
        return [str(each.entry.data) for each in found]


def of_kind(template: Template, kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]


def statements(template: Template) -> list[dict[str, Any]]:
    """The statements of the roles that name the key."""
    found = [each["PolicyDocument"]["Statement"] for each in of_kind(template, "AWS::IAM::Policy")]
    return [each for listed in found for each in listed if "kms:" in json.dumps(each["Action"])]


def key_policy(template: Template) -> list[dict[str, Any]]:
    (key,) = of_kind(template, "AWS::KMS::Key")
    return list(key["KeyPolicy"]["Statement"])


@pytest.fixture(scope="module", params=["here", "other stack"])
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Users, Any]:
    """An app with a key of its own, in the pool's stack or in another, and a function in a third."""
    users = Users(tmp_path_factory.mktemp("encryption"), request.param)
    users.attach(Stack(users.app, "Functions"))
    return users, users.templates()


def test_secrets_log_and_disks_are_encrypted_with_the_key(deployed: tuple[Users, Any]) -> None:
    """Everything of the pool's that stores data names the key; stacks that name each other's things deploy in order."""
    users, templates = deployed
    template = templates["Users"]
    named = [each["KmsKeyId"] for each in of_kind(template, "AWS::SecretsManager::Secret")]
    named += [each["KmsKeyId"] for each in of_kind(template, "AWS::Logs::LogGroup")]
    (cluster,) = of_kind(template, "AWS::ECS::Cluster")
    named.append(cluster["Configuration"]["ManagedStorageConfiguration"]["FargateEphemeralStorageKmsKeyId"])
    assert len(named) == 4
    assert all("TheKey" in json.dumps(each) for each in named)
    # Only the key's stack may be the first: what it needs of the others would be a circle.
    assert "Fn::ImportValue" not in json.dumps(templates[users.keys.stack_name].get("Resources", {})) or (
        users.keys is users.stack
    )


def test_log_may_use_the_key_for_this_stacks_groups_only(deployed: tuple[Users, Any]) -> None:
    """CloudWatch Logs is allowed what its documentation asks for, under the condition of the log group's ARN."""
    users, templates = deployed
    (statement,) = [each for each in key_policy(templates[users.keys.stack_name]) if "logs." in json.dumps(each)]
    assert statement["Principal"]["Service"]["Fn::Join"][1][:2] == ["logs.", {"Ref": "AWS::Region"}]
    assert {"kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"} == set(
        statement["Action"]
    )
    arn = json.dumps(statement["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"])
    assert arn.endswith(':log-group:Users-*"]]}')
    # CloudFormation names a group after the stack where the template does not.
    (group,) = of_kind(templates["Users"], "AWS::Logs::LogGroup")
    assert "LogGroupName" not in group


def test_fargate_may_use_the_key_for_disks(deployed: tuple[Users, Any]) -> None:
    """The tasks' disks hold rendered files, the database's password among them."""
    users, templates = deployed
    allowed = [each for each in key_policy(templates[users.keys.stack_name]) if "fargate." in json.dumps(each)]
    assert [each["Action"] for each in allowed] == ["kms:GenerateDataKeyWithoutPlaintext", "kms:CreateGrant"]


def test_roles_may_use_the_key_for_secrets_only(deployed: tuple[Users, Any]) -> None:
    """Tasks and functions have the key by way of Secrets Manager alone, and functions cannot encrypt."""
    _, templates = deployed
    tasks, function = statements(templates["Users"]), statements(templates["Functions"])
    assert {action for each in tasks for action in _listed(each["Action"])} == {"kms:Decrypt", "kms:GenerateDataKey"}
    assert {action for each in function for action in _listed(each["Action"])} == {"kms:Decrypt"}
    for statement in (*tasks, *function):
        assert statement["Condition"] == VIA_SECRETS_MANAGER
        assert "TheKey" in json.dumps(statement["Resource"])
    assert not any("kms:" in json.dumps(each) and "Role" in json.dumps(each) for each in key_policy_of_all(templates))


def key_policy_of_all(templates: dict[str, Template]) -> list[Any]:
    return [
        each["Principal"]
        for template in templates.values()
        for key in of_kind(template, "AWS::KMS::Key")
        for each in key["KeyPolicy"]["Statement"]
    ]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_two_stacks_share_a_key(tmp_path: Path) -> None:
    """The key's policy lets in the log groups of both, and neither waits for the other."""
    users = Users(tmp_path, "other stack")
    second = Stack(users.app, "Second")
    users.make_pool(second, ec2.Vpc(second, "Vpc", max_azs=2))
    text = json.dumps(key_policy(users.templates()["Keys"]))
    assert ":log-group:Users-*" in text
    assert ":log-group:Second-*" in text


def test_imported_key_gets_a_warning_with_what_its_policy_needs(tmp_path: Path) -> None:
    """The statements can be pasted: without them log group and tasks could not be made."""
    users = Users(tmp_path, "imported")
    (said,) = users.warnings()
    wanted, _ = json.JSONDecoder().raw_decode(said[said.index("[{") :])
    assert [each["Principal"]["Service"] for each in wanted] == [
        "logs.<Region>.<URLSuffix>",
        "fargate.amazonaws.com",
        "fargate.amazonaws.com",
    ]
    condition = wanted[0]["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"]
    assert condition == "arn:<Partition>:logs:<Region>:<AccountId>:log-group:Users-*"
    assert wanted[1]["Condition"]["StringEquals"]["kms:EncryptionContext:aws:ecs:clusterAccount"] == "<AccountId>"
    template = users.templates()["Users"]
    assert not of_kind(template, "AWS::KMS::Key")
    assert all(each["Resource"] == FOREIGN for each in statements(template))


def test_key_of_this_app_needs_no_warning(deployed: tuple[Users, Any]) -> None:
    """Its policy is complete as it is deployed."""
    assert deployed[0].warnings() == []


def test_cluster_of_others_keeps_its_own_encryption(tmp_path: Path) -> None:
    """Whoever brings a cluster decides on its disks; the rest has the key, and the warning asks for no more."""
    app = make_app(tmp_path)
    stack = Stack(app, "Users")
    vpc = ec2.Vpc(stack, "Vpc", max_azs=2)
    secret = secretsmanager.Secret.from_secret_name_v2(stack, "Secret", "theirs")
    database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=200)
    key = kms.Key.from_key_arn(stack, "Imported", FOREIGN)
    cluster = ecs.Cluster(stack, "Theirs", vpc=vpc)
    PoolProxy(stack, "Pool", vpc=vpc, database=database, encryption_key=key, cluster=cluster)
    (said,) = Annotations.from_stack(stack).find_warning("*", Match.string_like_regexp(FOREIGN_KEY))
    assert "logs." in str(said.entry.data)
    assert "fargate" not in str(said.entry.data)


def test_databases_secret_with_a_key_of_another_stack_is_no_circle(tmp_path: Path) -> None:
    """The tasks may read a secret that others encrypt, whichever stack its key is in."""
    app = make_app(tmp_path)
    theirs, ours = Stack(app, "Theirs"), Stack(app, "Ours")
    secret = secretsmanager.Secret(theirs, "Secret", encryption_key=kms.Key(theirs, "Key"))
    vpc = ec2.Vpc(ours, "Vpc", max_azs=2)
    database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=200)
    PoolProxy(ours, "Pool", vpc=vpc, database=database)
    (statement,) = statements(app.synth().get_stack_by_name("Ours").template)
    assert statement["Action"] == "kms:Decrypt"
    assert statement["Condition"] == VIA_SECRETS_MANAGER


def test_pool_without_a_key_needs_no_permission_for_one(synthesized: Synthesized) -> None:
    """AWS's own keys ask for nothing, and nothing is said of them."""
    for name, template in synthesized.templates.items():
        assert statements(template) == [], name
