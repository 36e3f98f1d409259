"""The app's context values: one clear message for each that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import make_app

from emberpool_app.context import CONTEXT, DATABASE_NEW, AppContext, ContextInvalid, context_table
from emberpool_app.deployment import EXAMPLE, POOL, add_stacks

EXISTING = {
    "database": "existing",
    "vpcId": "vpc-0123",
    "databaseHost": "db.example.com",
    "databaseSecretArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:theirs-AbCdEf",
    "databaseMaxConnections": "200",
}


def test_defaults_need_nothing() -> None:
    """Without any value the app gets a new database and two to four tasks."""
    context = AppContext.from_values({})
    assert (context.min_tasks, context.max_tasks, context.existing) == (2, 4, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"database": "mine"}, "database must be new or existing, got 'mine'"),
        ({"database": "existing"}, "needs vpcId, databaseHost, databaseSecretArn, databaseMaxConnections"),
        ({**EXISTING, "databaseHost": ""}, "database=existing needs databaseHost: add -c databaseHost="),
        ({**EXISTING, "databaseSecretArn": "theirs"}, "the six characters at its end), got 'theirs'"),
        ({**EXISTING, "databaseHost": "db:5432"}, "(db.example.com, without a port), got 'db:5432'"),
        ({**EXISTING, "vpcId": "mine"}, "vpcId must match vpc-[0-9a-f]+ (vpc-0123456789abcdef0), got 'mine'"),
        ({**EXISTING, "databaseSecurityGroupId": "mine"}, "databaseSecurityGroupId must match sg-[0-9a-f]+"),
        ({**EXISTING, "databaseMaxConnections": "x"}, "databaseMaxConnections must be a whole number, got 'x'"),
        ({**EXISTING, "exampleUrl": "public"}, "exampleUrl is for database=new, but database is existing"),
        ({"databaseHost": "h"}, "databaseHost is for database=existing, but database is new: add -c database=existing"),
        ({**EXISTING, "databasePort": "0"}, "databasePort must be between 1 and 65535, got 0"),
        ({"maxTasks": "many"}, "maxTasks must be a whole number, got 'many'"),
        ({"maxTasks": "1"}, "maxTasks must be between 2 and 1000, got 1"),
        ({"minTasks": 0}, "minTasks must be between 1 and 1000, got 0"),
        ({"floorConnections": "0"}, "floorConnections must be between 1 and 1000, got 0"),
        ({"reservedConnections": "-1"}, "reservedConnections must be between 0 and 10000, got -1"),
        ({"otherTasks": "few"}, "otherTasks must be a whole number, got 'few'"),
        ({"budgetName": "my pool"}, "budgetName must match"),
        ({"architecture": "arm"}, "architecture must be arm64 or x86_64, got 'arm'"),
        ({"endpoint": "alb"}, "endpoint must be nlb or dns, got 'alb'"),
        ({"runtime": "python3.11"}, "runtime must be python3.12, python3.13 or python3.14, got 'python3.11'"),
        ({"exampleUrl": "open"}, "exampleUrl must be iam or public, got 'open'"),
        ({"databaseName": ""}, "databaseName must match"),
        (
            {"databaseName": "my-db"},
            "databaseName of a new database must match [A-Za-z][A-Za-z0-9_]{0,62}, got 'my-db'",
        ),
        ({"maxConnections": "5"}, "maxConnections must be between 6 and 8388607, got 5"),
        ({"databasehost": "h"}, "there is no context value databasehost: did you mean databaseHost?"),
    ],
)
def test_wrong_value_gives_one_clear_error(given: dict[str, Any], message: str) -> None:
    """The message names the value, what was seen and what is allowed."""
    with pytest.raises(ContextInvalid) as caught:
        AppContext.from_values(given)
    assert message in str(caught.value)


def test_every_value_is_checked() -> None:
    """A value that no one could have meant is refused, whichever row of the table it is for."""
    for row in CONTEXT:
        others = {} if row.of == DATABASE_NEW or row.name == "database" else EXISTING
        with pytest.raises(ContextInvalid, match=row.name):
            AppContext.from_values({**others, row.name: "not this\n"})


def test_context_of_others_is_left_alone() -> None:
    """Feature flags, look-up results and plugins' own values are no mistakes."""
    AppContext.from_values({"@aws-cdk/core:x": True, "vpc-provider:account=1": {}, "acknowledged": []})


def test_table_documents_every_value() -> None:
    """Each value is in the table that messages and documentation show."""
    shown = context_table()
    assert all(row.name in shown and row.help in shown for row in CONTEXT)


def test_existing_database_gets_the_pool_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an existing database only the pool and the layer are made, with its host, its secret and its budget."""
    monkeypatch.setenv("CDK_DEFAULT_ACCOUNT", "123456789012")
    monkeypatch.setenv("CDK_DEFAULT_REGION", "us-east-1")
    terms = {"reservedConnections": "30", "floorConnections": "3", "budgetName": "orders", "otherTasks": "6"}
    app = make_app(tmp_path, **EXISTING, **terms)
    budget = add_stacks(app)
    assert (budget.max_connections, budget.reserved_connections) == (200, 30)
    assert (budget.floor_connections, budget.other_tasks) == (3, 6)
    assembly = app.synth()
    kinds = {each["Type"] for stack in assembly.stacks for each in stack.template.get("Resources", {}).values()}
    assert "AWS::RDS::DBInstance" not in kinds
    assert "AWS::EC2::VPC" not in kinds
    assert "AWS::Lambda::LayerVersion" in kinds
    assert EXISTING["databaseHost"] in str(assembly.get_stack_by_name(POOL).template)
    assert "{'Name': 'EMBERPOOL_PROXY_BUDGET_NAME', 'Value': 'orders'}" in str(
        assembly.get_stack_by_name(POOL).template
    )


def test_look_up_without_credentials_gives_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account to look the VPC up in, the message says to sign in."""
    monkeypatch.delenv("CDK_DEFAULT_ACCOUNT", raising=False)
    with pytest.raises(ContextInvalid, match="sign in to AWS"):
        add_stacks(make_app(tmp_path, **EXISTING))


def test_secret_of_another_region_gives_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that the tasks could not read where they are is noticed before anything is deployed."""
    monkeypatch.setenv("CDK_DEFAULT_ACCOUNT", "123456789012")
    monkeypatch.setenv("CDK_DEFAULT_REGION", "eu-west-1")
    with pytest.raises(ContextInvalid, match="databaseSecretArn must be of the region .*eu-west-1, got .*us-east-1"):
        add_stacks(make_app(tmp_path, **EXISTING))


def test_public_url_is_open_to_everybody_and_asked_for_only(tmp_path: Path) -> None:
    """exampleUrl=public makes the one URL of the app public, by the two permissions that a URL needs."""
    app = make_app(tmp_path, exampleUrl="public")
    add_stacks(app)
    resources = app.synth().get_stack_by_name(EXAMPLE).template["Resources"].values()
    (url,) = [each["Properties"] for each in resources if each["Type"] == "AWS::Lambda::Url"]
    assert url["AuthType"] == "NONE"
    allowed = [each["Properties"] for each in resources if each["Type"] == "AWS::Lambda::Permission"]
    assert {each["Action"] for each in allowed} == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}
    assert {each["Principal"] for each in allowed} == {"*"}
    (plain,) = [each for each in allowed if each["Action"] == "lambda:InvokeFunction"]
    assert plain["InvokedViaFunctionUrl"] is True
