"""What attach reads of functions: whether they fit, and whether all together may wait for longer than they can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Duration, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk.assertions import Annotations, Match
from tests.infra.conftest import PoolInAStack

from emberpool_cdk import FunctionNotAttachable, PoolProxy
from emberpool_cdk.queue_wait import TOO_LONG, UNBOUNDED


def _function(users: PoolInAStack, name: str = "Function", **more: Any) -> lambda_.Function:
    given: dict[str, Any] = {
        "runtime": lambda_.Runtime.PYTHON_3_13,
        "architecture": lambda_.Architecture.ARM_64,
        "handler": "index.handler",
        "code": lambda_.Code.from_inline("def handler(event, context): ..."),
        "vpc": users.vpc,
        "timeout": Duration.seconds(15),
    }
    return lambda_.Function(users.stack, name, **(given | more))


def _warnings(stack: Stack, pattern: str) -> list[str]:
    found = Annotations.from_stack(stack).find_warning("/Users/Pool", Match.string_like_regexp(pattern))
    return [str(each.entry.data) for each in found]


def test_reserved_concurrency_is_counted_against_the_budget(tmp_path: Path) -> None:
    """The sum of all attached functions, in whatever order they came, is what the connections are divided by."""
    users = PoolInAStack(tmp_path)
    for name, reserved in (("A", 9000), ("B", 9000)):
        users.pool.attach(_function(users, name, reserved_concurrent_executions=reserved))
    connections = users.pool.budget.most_at_min_tasks
    (warning,) = _warnings(users.stack, "clients may wait too long")
    assert f"may run 18000 times at once and share {connections} server connections" in warning
    assert "the pool's query_wait_seconds is 10 s" in warning
    assert TOO_LONG in warning
    assert not _warnings(users.stack, "no reserved")


def test_function_with_enough_connections_gives_no_warning(tmp_path: Path) -> None:
    """A function that waits for a second is not worth a word."""
    users = PoolInAStack(tmp_path)
    users.pool.attach(_function(users, reserved_concurrent_executions=1000))
    assert not _warnings(users.stack, "clients|concurrency")


def test_function_without_reserved_concurrency_is_named_and_can_be_accepted(tmp_path: Path) -> None:
    """The warning names the function; who knows it acknowledges the warning by its id, and only this one."""
    users = PoolInAStack(tmp_path)
    users.pool.attach(_function(users))
    (warning,) = _warnings(users.stack, "no reserved concurrency")
    assert "Users/Function" in warning
    assert UNBOUNDED in warning


def test_transactions_that_are_longer_are_counted_as_such(tmp_path: Path) -> None:
    """transaction_seconds of the pool is the t of Little's law."""
    users = PoolInAStack(tmp_path, transaction_seconds=2, query_wait_seconds=20)
    users.pool.attach(_function(users, reserved_concurrent_executions=1200))
    (warning,) = _warnings(users.stack, "clients may wait too long")
    assert "a transaction of 2 s" in warning
    assert "what Users/Function has until its timeout is 13 s" in warning


def test_function_of_another_stack_counts(tmp_path: Path) -> None:
    """Functions live where they like: the warning is the pool's."""
    users = PoolInAStack(tmp_path)
    other = Stack(users.app, "Functions")
    function = lambda_.Function(
        other,
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_13,
        architecture=lambda_.Architecture.ARM_64,
        handler="index.handler",
        code=lambda_.Code.from_inline("def handler(event, context): ..."),
        vpc=users.vpc,
    )
    users.pool.attach(function)
    assert "Functions/Function" in _warnings(users.stack, "no reserved concurrency")[0]


def test_alias_and_version_are_refused(tmp_path: Path) -> None:
    """Layers and variables are the function's: the message says what to attach."""
    users = PoolInAStack(tmp_path)
    version: Any = _function(users).current_version
    with pytest.raises(FunctionNotAttachable, match="alias or a version: attach the function itself"):
        users.pool.attach(version)


def test_container_image_is_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    """An image takes no layer, and the message says what to install and which calls remain."""
    users = PoolInAStack(tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "Dockerfile").write_text("FROM scratch\n")
    code = lambda_.DockerImageCode.from_image_asset(str(tmp_path / "image"))
    function = lambda_.DockerImageFunction(users.stack, "Image", code=code, vpc=users.vpc)
    with pytest.raises(FunctionNotAttachable, match=r"takes no layers: install emberpool\[layer\]"):
        users.pool.attach(function)


def test_imported_function_is_told_what_works_from_here(tmp_path: Path) -> None:
    """Of a function imported by ARN neither layer nor concurrency can be had; the grants can."""
    users = PoolInAStack(tmp_path)
    imported: Any = lambda_.Function.from_function_arn(
        users.stack, "Imported", "arn:aws:lambda:us-east-1:123456789012:function:theirs"
    )
    with pytest.raises(FunctionNotAttachable, match=r"nor is its reserved concurrency known: .* grant_connect\(its"):
        users.pool.attach(imported)


def test_key_of_ones_own_encrypts_both_secrets(tmp_path: Path) -> None:
    """Both secrets name the key; tasks may read and write with it, a function may read."""
    users = PoolInAStack(tmp_path, reserved_connections=100)
    arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    key = kms.Key.from_key_arn(users.stack, "Key", arn)
    given: dict[str, Any] = {"vpc": users.vpc, "database": users.database, "reserved_connections": 100}
    pool = PoolProxy(users.stack, "Encrypted", encryption_key=key, **given)
    pool.attach(_function(users))
    template = users.template()
    secrets = [
        each["Properties"]
        for name, each in template["Resources"].items()
        if each["Type"] == "AWS::SecretsManager::Secret" and name.startswith("Encrypted")
    ]
    assert [each["KmsKeyId"] for each in secrets] == [arn, arn]
    assert _allowed_with(template, "EncryptedTask", arn) == {"kms:Decrypt", "kms:GenerateDataKey"}
    assert _allowed_with(template, "FunctionServiceRole", arn) == {"kms:Decrypt"}


def _allowed_with(template: dict[str, Any], role: str, arn: str) -> set[str]:
    allowed: set[str] = set()
    for each in template["Resources"].values():
        if each["Type"] != "AWS::IAM::Policy" or role not in json.dumps(each["Properties"]["Roles"]):
            continue
        for statement in each["Properties"]["PolicyDocument"]["Statement"]:
            if statement["Resource"] == arn:
                actions = statement["Action"]
                allowed.update([actions] if isinstance(actions, str) else actions)
    return allowed


@pytest.mark.parametrize(("seconds", "message"), [(0.1, "0.5 and 900, got 0.1"), (1000, "got 1000")])
def test_query_wait_out_of_range_is_refused(tmp_path: Path, seconds: float, message: str) -> None:
    """What the proxy would refuse at its start fails the synth."""
    with pytest.raises(ValueError, match=f"query_wait_seconds must be between .*{message}"):
        PoolInAStack(tmp_path, query_wait_seconds=seconds)
