"""Further users of a pool: their secrets, what the proxy is told of them, and who may read what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from tests.infra.conftest import PoolInAStack, Template, make_app
from tests.infra.test_attachment import _allowed_with, _function

from emberpool_cdk import PoolDatabase, PoolProxy
from emberpool_proxy.credentials.client_specs import ClientSpec, client_specs
from emberpool_proxy.settings import ProxySettings

ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:"
ROLE = f"{ARN}reports-AbCdEf"


class PoolWithRole(PoolInAStack):
    """A pool whose second entry, `reports`, is served by a role of its own."""

    def __init__(self, folder: Path, **pool: Any) -> None:
        self.app: App = make_app(folder)
        self.stack = Stack(self.app, "Users")
        self.vpc = ec2.Vpc(self.stack, "Vpc", max_azs=2, nat_gateways=1)
        named = secretsmanager.Secret.from_secret_complete_arn
        owner, role = (named(self.stack, name, arn) for name, arn in (("Owner", f"{ARN}owner-AbCdEf"), ("Role", ROLE)))
        self.database = PoolDatabase(host="db.example.com", name="shop", secret=owner, max_connections=200)
        self.pool = PoolProxy(
            self.stack, "Pool", vpc=self.vpc, database=self.database, database_roles={"reports": role}, **pool
        )


def _settings(template: Template) -> ProxySettings:
    """Return the settings as the proxy reads them; a secret of the template has an ARN of its logical id."""
    (task,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::ECS::TaskDefinition"]
    (container,) = task["Properties"]["ContainerDefinitions"]
    return ProxySettings.from_environment({each["Name"]: _text(each["Value"]) for each in container["Environment"]})


def _text(value: Any) -> str:
    if isinstance(value, dict):
        if "Ref" in value:
            return f"{ARN}{value['Ref']}"
        if "Fn::GetAtt" in value:
            return "pool.internal"
        return "".join(_text(part) for part in value["Fn::Join"][1])
    return str(value)


def _secrets(template: Template) -> dict[str, dict[str, Any]]:
    """Return the secrets with a user name, by that name, with their logical ids."""
    found = {}
    for logical_id, each in template["Resources"].items():
        if each["Type"] == "AWS::SecretsManager::Secret":
            generated = each["Properties"]["GenerateSecretString"]
            user = json.loads(generated["SecretStringTemplate"]).get("username")
            if user:
                found[user] = {"id": logical_id, **each["Properties"]}
    return found


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> PoolProxy:
    """A pool with one client, which is not changed by one that it refuses."""
    pool = PoolWithRole(tmp_path_factory.mktemp("refusing")).pool
    pool.add_client("orders")
    return pool


def test_clients_are_told_to_the_proxy_as_it_reads_them(tmp_path: Path) -> None:
    """Each has its own secret, entry, role and limit in the proxy's own reading; the first user stays."""
    users = PoolWithRole(tmp_path)
    users.pool.add_client("orders", max_connections=50)
    users.pool.add_client("reporting", entry="reports")
    template = users.template()
    secrets = _secrets(template)
    assert set(secrets) == {"emberpool", "orders", "reporting"}
    assert client_specs(_settings(template)) == (
        ClientSpec(f"{ARN}{secrets['emberpool']['id']}", "shop"),
        ClientSpec(f"{ARN}{secrets['orders']['id']}", "shop", max_connections=50),
        ClientSpec(f"{ARN}{secrets['reporting']['id']}", "reports", database_role_secret_arn=ROLE),
    )
    assert users.pool.budget.pools == 2
    assert _settings(template).floor_connections == 3  # two pools of a task need that many


def test_attached_function_has_its_own_user_and_reads_no_other_password(tmp_path: Path) -> None:
    """Its environment names the client's user, entry and secret, and its role may read that secret alone."""
    users = PoolWithRole(tmp_path)
    users.pool.attach(_function(users), client=users.pool.add_client("reporting", entry="reports"))
    template = users.template()
    (function,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::Lambda::Function"]
    variables = function["Properties"]["Environment"]["Variables"]
    assert (variables["EMBERPOOL_USER"], variables["EMBERPOOL_DATABASE"]) == ("reporting", "reports")
    own = _secrets(template)["reporting"]["id"]
    assert variables["EMBERPOOL_SECRET_ARN"] == {"Ref": own}
    (policy,) = [
        each["Properties"]
        for each in template["Resources"].values()
        if each["Type"] == "AWS::IAM::Policy" and "FunctionServiceRole" in json.dumps(each["Properties"]["Roles"])
    ]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement["Resource"] == {"Ref": own}
    assert statement["Action"] == "secretsmanager:GetSecretValue"


def test_tasks_may_do_with_a_clients_secret_what_they_may_with_the_first(tmp_path: Path) -> None:
    """They read each client's secret and write the CA beside its password; of the role's they read only."""
    users = PoolWithRole(tmp_path)
    users.pool.add_client("reporting", entry="reports")
    template = users.template()
    secrets = _secrets(template)
    allowed: dict[str, set[str]] = {}
    for each in template["Resources"].values():
        if each["Type"] == "AWS::IAM::Policy" and "TaskRole" in json.dumps(each["Properties"]["Roles"]):
            for statement in each["Properties"]["PolicyDocument"]["Statement"]:
                resources = statement["Resource"]
                for resource in resources if isinstance(resources, list) else [resources]:
                    actions = statement["Action"]
                    allowed.setdefault(_text(resource), set()).update(
                        [actions] if isinstance(actions, str) else actions
                    )
    assert allowed[f"{ARN}{secrets['reporting']['id']}"] == allowed[f"{ARN}{secrets['emberpool']['id']}"]
    assert allowed[ROLE] == {"secretsmanager:GetSecretValue"}


def test_key_of_ones_own_encrypts_a_clients_secret_too(tmp_path: Path) -> None:
    """The pool's key is each client's, and the function may decrypt with it."""
    users = PoolInAStack(tmp_path, reserved_connections=100)
    arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    key = kms.Key.from_key_arn(users.stack, "Key", arn)
    given: dict[str, Any] = {"vpc": users.vpc, "database": users.database, "reserved_connections": 100}
    pool = PoolProxy(users.stack, "Encrypted", encryption_key=key, **given)
    pool.attach(_function(users), client=pool.add_client("orders"))
    template = users.template()
    assert _secrets(template)["orders"]["KmsKeyId"] == arn
    assert "kms:Decrypt" in _allowed_with(template, "FunctionServiceRole", arn)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ({"user": "emberpool"}, "the pool has a client 'emberpool' already: it has emberpool, orders"),
        ({"user": "orders"}, "the pool has a client 'orders' already"),
        ({"user": "pgbouncer"}, "a client's name must match .* and be none of pgbouncer, emberpool_agent"),
        ({"user": "my app"}, "a client's name must match .*, got 'my app'"),
        (
            {"user": "app", "entry": "sales"},
            r"there is no entry 'sales': the pool has shop, reports; .*database_roles=",
        ),
        ({"user": "app", "max_connections": 9000}, "must be between 0 .no limit of its own. and 8000, .* got 9000"),
    ],
)
def test_client_that_cannot_be_is_refused(refusing: PoolProxy, client: dict[str, Any], message: str) -> None:
    """The message has the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        refusing.add_client(**client)


def test_client_of_another_pool_is_refused(tmp_path: Path) -> None:
    """Its password opens another proxy."""
    users = PoolWithRole(tmp_path, reserved_connections=110)
    given: dict[str, Any] = {"vpc": users.vpc, "database": users.database, "reserved_connections": 110}
    other = PoolProxy(users.stack, "Other", **given)
    with pytest.raises(ValueError, match="Users/Other/Client-orders is not a client of Users/Pool"):
        users.pool.attach(_function(users), client=other.add_client("orders"))


def test_floor_that_is_too_low_for_the_roles_is_refused(tmp_path: Path) -> None:
    """Each role has a pool in each PgBouncer, and each pool needs its connection."""
    with pytest.raises(ValueError, match="floor_connections must be at least 3 for the 2 pools of a task"):
        PoolWithRole(tmp_path, floor_connections=2)


def test_entry_with_the_databases_name_is_refused(tmp_path: Path) -> None:
    """It is the pool's own."""
    users = PoolInAStack(tmp_path)
    secret = secretsmanager.Secret.from_secret_name_v2(users.stack, "Role", "role")
    given: dict[str, Any] = {"vpc": users.vpc, "database": users.database}
    with pytest.raises(ValueError, match="an entry of database_roles must match .* be none of .*shop, got 'shop'"):
        PoolProxy(users.stack, "Other", database_roles={"shop": secret}, **given)
