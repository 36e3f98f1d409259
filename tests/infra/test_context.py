"""The app's context values: one clear message for each that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import make_app

from emberpool_app.context import CONTEXT, AppContext, ContextInvalid, context_table
from emberpool_app.deployment import POOL, add_stacks

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
        ({**EXISTING, "databaseSecretArn": "theirs"}, "databaseSecretArn must be a full ARN, got 'theirs'"),
        ({**EXISTING, "databasePort": "0"}, "databasePort must be between 1 and 65535, got 0"),
        ({"maxTasks": "many"}, "maxTasks must be a whole number, got 'many'"),
        ({"maxTasks": "1"}, "maxTasks must be between 2 and 1000, got 1"),
        ({"minTasks": 0}, "minTasks must be between 1 and 1000, got 0"),
        ({"floorConnections": "0"}, "floorConnections must be between 1 and 1000, got 0"),
        ({"reservedConnections": "-1"}, "reservedConnections must be between 0 and 10000, got -1"),
        ({"otherTasks": "few"}, "otherTasks must be a whole number, got 'few'"),
        ({"budgetName": "my pool"}, "budgetName must match"),
        ({"architecture": "arm"}, "architecture must be arm64 or x86_64, got 'arm'"),
        ({"databasehost": "h"}, "there is no context value databasehost: did you mean databaseHost?"),
    ],
)
def test_wrong_value_gives_one_clear_error(given: dict[str, Any], message: str) -> None:
    """The message names the value, what was seen and what is allowed."""
    with pytest.raises(ContextInvalid) as caught:
        AppContext.from_values(given)
    assert message in str(caught.value)


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
