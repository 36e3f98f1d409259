"""A KMS key of the user's for what the pool stores: its secrets, its log and its tasks' disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aws_cdk import Annotations, Stack, Token
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

# What CloudWatch Logs needs of a key, by "Encrypt log data in CloudWatch Logs using AWS KMS" of its user guide.
LOG_ACTIONS = ("kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey")
FOREIGN_KEY = "emberpool:imported-key"


class PoolKey:
    """The key as the pool's stack may use it. The log's permission is added to the policy of a key of this app.

    An imported key has a policy that nobody can change from here: synth warns with the statements that it needs.
    """

    def __init__(self, scope: Construct, key: kms.IKey) -> None:
        self._scope = scope
        self.is_imported = not key.add_to_resource_policy(self._for_the_log(), True).statement_added
        # A key of another stack would wait for this stack's roles, which its policy names then, and they for it.
        is_elsewhere = Stack.of(key) is not Stack.of(scope) and not self.is_imported
        self.key = kms.Key.from_key_arn(scope, "Key", key.key_arn) if is_elsewhere else key

    def warn_if_imported(self, *, with_disks: bool) -> None:
        """Say what the policy of an imported key must allow: without it log group and tasks cannot be made."""
        if not self.is_imported:
            return
        statements = [self._for_the_log().to_statement_json(), *(self._for_disks() if with_disks else ())]
        Annotations.of(self._scope).add_warning_v2(
            FOREIGN_KEY,
            "the policy of an imported encryption_key cannot be changed from here; unless it has them already, add "
            f"these statements to it before you deploy, then acknowledge this: {self._as_text(statements)}",
        )

    def _for_the_log(self) -> iam.PolicyStatement:
        stack = Stack.of(self._scope)
        # CloudFormation names the log group after the stack. Not by its ARN: the key would wait for what waits for it.
        group = "*" if Token.is_unresolved(stack.stack_name) else f"{stack.stack_name}-*"
        log_groups = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:{group}"
        return iam.PolicyStatement(
            principals=[iam.ServicePrincipal(f"logs.{stack.region}.{stack.url_suffix}")],
            actions=list(LOG_ACTIONS),
            resources=["*"],  # this key: it is the key's own policy
            conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": log_groups}},
        )

    def _for_disks(self) -> list[Mapping[str, Any]]:
        """Return what a cluster adds to the policy of a key that is not imported."""
        of_this_account = {"kms:EncryptionContext:aws:ecs:clusterAccount": Stack.of(self._scope).account}
        only_to_decrypt = {"ForAllValues:StringEquals": {"kms:GrantOperations": ["Decrypt"]}}
        return [
            {
                "Effect": "Allow",
                "Principal": {"Service": "fargate.amazonaws.com"},
                "Action": action,
                "Resource": "*",
                "Condition": {"StringEquals": of_this_account, **more},
            }
            for action, more in (("kms:GenerateDataKeyWithoutPlaintext", {}), ("kms:CreateGrant", only_to_decrypt))
        ]

    def _as_text(self, statements: list[Any]) -> str:
        return json.dumps(_in_words(Stack.of(self._scope).resolve(statements)))


def _in_words(resolved: Any) -> Any:
    """Return a part of a template with names, such as <Region>, for what CloudFormation would fill in."""
    if isinstance(resolved, list):
        return [_in_words(each) for each in resolved]
    if not isinstance(resolved, dict):
        return resolved
    if "Ref" in resolved:
        return f"<{resolved['Ref'].removeprefix('AWS::')}>"
    if "Fn::Join" in resolved:
        separator, parts = resolved["Fn::Join"]
        return separator.join(map(_in_words, parts))
    return {name: _in_words(value) for name, value in resolved.items()}
