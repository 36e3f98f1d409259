"""What checkers of templates find in our resources although it is meant so, each with its reason.

The reason stands where the resource is made, so a user who checks their own app has no findings of ours to look into.
Nothing here needs a checker: cdk-nag 3 reads the CDK's own acknowledgments; cdk-nag 2 and cfn-lint read the template's
metadata, where an auditor of a deployed stack finds the reasons, too.
"""

from __future__ import annotations

import re

import aws_cdk
from aws_cdk import CfnResource
from constructs import IConstruct

NAG_METADATA = "cdk_nag"
LINT_METADATA = "cfn-lint"
# A rule that finds several things in one resource names the one in brackets: AwsSolutions-IAM5[Resource::*].
RULE = re.compile(r"(?P<id>[A-Za-z0-9-]+)(\[(?P<finding>.+)\])?")


def explain(construct: IConstruct, rule: str, reason: str) -> None:
    """Say why what cdk-nag's `rule` finds in this one resource is no weakness; `rule` is as cdk-nag 3 writes it.

    Raises ValueError for something that is not one resource, and for a rule that cannot be read.
    """
    resource = _resource(construct)
    parts = RULE.fullmatch(rule)
    if parts is None:
        raise ValueError(f"rule must be an id, or an id with a finding in brackets, got {rule!r}")
    if hasattr(aws_cdk, "Validations"):  # not in the oldest aws-cdk-lib that we support, nor does it run cdk-nag 3
        aws_cdk.Validations.of(resource).acknowledge(aws_cdk.Acknowledgment(id=rule, reason=reason))
    suppressed: dict[str, object] = {"id": parts["id"], "reason": reason}
    if parts["finding"]:
        suppressed["applies_to"] = [parts["finding"]]
    earlier = (resource.get_metadata(NAG_METADATA) or {}).get("rules_to_suppress", [])
    resource.add_metadata(NAG_METADATA, {"rules_to_suppress": [*earlier, suppressed]})


def explain_to_cfn_lint(construct: IConstruct, rule: str) -> None:
    """Have cfn-lint pass over `rule` in this one resource; why is for the caller to say, in a comment."""
    _resource(construct).add_metadata(LINT_METADATA, {"config": {"ignore_checks": [rule]}})


def _resource(construct: IConstruct) -> CfnResource:
    resource = construct if isinstance(construct, CfnResource) else construct.node.default_child
    if not isinstance(resource, CfnResource):
        raise ValueError(  # noqa: TRY004 (a construct it is: the wrong one)
            f"{construct.node.path} is not one resource: explain the finding at the resource itself"
        )
    return resource
