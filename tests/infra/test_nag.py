"""cdk-nag's AwsSolutions pack finds nothing in our apps that is not explained where the resource is made.

An empty report cannot prove that the pack ran, so one test has it find everything that is explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aws_cdk
import pytest
from aws_cdk import App, CfnResource, Validations
from aws_cdk import aws_ec2 as ec2
from cdk_nag import AwsSolutionsChecks
from tests.infra.checked_apps import our_app, users_app

from emberpool_app.deployment import POOL
from emberpool_cdk.explained_findings import NAG_METADATA, explain

WHAT_TO_DO = "mend it, or explain() it where the resource is made (CONTRIBUTING.md, Infrastructure)"
# What a user's app of ours does not decide: their VPC, their database, their function.
OF_THE_USER = ("Users/Vpc/Resource", "Users/Database/", "Users/Function/")


@dataclass(frozen=True, order=True)
class Finding:
    """A rule, with what it found in brackets where it can find several things, and the resource's path."""

    rule: str
    path: str
    description: str = field(default="", compare=False)


def _findings(app: App) -> list[Finding]:
    """Have the pack look at a synthesized app: policies are complete only then."""
    app.synth()
    report = AwsSolutionsChecks(app).validate_scope(app)
    return sorted(
        Finding(violation.rule_name, resource.construct_path, violation.description)
        for violation in report.violations
        for resource in violation.violating_resources
    )


def _explained(app: App) -> list[Finding]:
    """Read what is explained from the metadata that cdk-nag 2 and auditors read in the templates."""
    found = []
    for construct in app.node.find_all():
        if CfnResource.is_cfn_resource(construct):
            metadata = construct.get_metadata(NAG_METADATA) or {"rules_to_suppress": []}  # type: ignore[attr-defined]
            for rule in metadata["rules_to_suppress"]:
                names = [f"{rule['id']}[{finding}]" for finding in rule.get("applies_to", [])] or [rule["id"]]
                found += [Finding(name, construct.node.path) for name in names]
    return sorted(found)


def _is_ours(finding: Finding) -> bool:
    return not finding.path.startswith(OF_THE_USER)


@pytest.mark.parametrize("variant", ["default", "dns", "dual_stack", "data_endpoint", "existing"])
def test_nothing_in_our_app_is_unexplained(tmp_path: Path, variant: str) -> None:
    """Every stack of our app passes the pack, with each kind of endpoint and with a database of the user's."""
    assert _findings(our_app(tmp_path, variant)) == [], WHAT_TO_DO


@pytest.mark.parametrize("endpoint", ["nlb", "dns"])
def test_user_of_the_wheel_sees_no_finding_of_ours(tmp_path: Path, endpoint: str) -> None:
    """In a user's app with all of our constructs the pack finds what is the user's own, and nothing else."""
    findings = _findings(users_app(tmp_path, endpoint))
    assert [finding for finding in findings if _is_ours(finding)] == [], WHAT_TO_DO
    assert findings, "the user's database is not encrypted, their VPC has no log: did the pack run?"


@pytest.mark.parametrize(
    "make_app", [partial(our_app, variant="default"), partial(users_app, endpoint="nlb")], ids=["ours", "users"]
)
def test_pack_finds_what_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_app: Callable[[Path], App]
) -> None:
    """Where the CDK's acknowledgments are missing the pack finds each explained thing: none is out of date."""
    monkeypatch.delattr(aws_cdk, "Validations")  # as in an aws-cdk-lib that is older than cdk-nag 3
    app = make_app(tmp_path)
    monkeypatch.undo()
    findings = [finding for finding in _findings(app) if _is_ours(finding)]
    assert findings == _explained(app)
    assert "AwsSolutions-ELB2" in {finding.rule for finding in findings}


def test_broken_rule_stops_a_synth_with_the_pack(tmp_path: Path) -> None:
    """As a plugin the pack lets our app through, and stops it when somebody opens a door: explanations hide nothing."""
    app = our_app(tmp_path, "default")
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()
    group = app.node.find_child(POOL).node.find_child("Pool").node.find_child("BalancerSecurityGroup")
    assert isinstance(group, ec2.SecurityGroup)
    group.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(6432))
    with pytest.raises(RuntimeError, match="ValidationFailed"):
        app.synth(force=True)
    report = AwsSolutionsChecks(app).validate_scope(app)
    assert [violation.rule_name for violation in report.violations] == ["AwsSolutions-EC23"]


def test_only_a_resource_can_be_explained(tmp_path: Path) -> None:
    """A construct of several resources is refused: a reason is for the one resource that it was thought of for."""
    app = our_app(tmp_path, "default")
    pool = app.node.find_child(POOL).node.find_child("Pool")
    with pytest.raises(ValueError, match="EmberpoolPool/Pool is not one resource"):
        explain(pool, "AwsSolutions-SMG4", "whatever")
    with pytest.raises(ValueError, match=r"rule must be an id, .* got 'SMG4\['"):
        explain(pool.node.find_child("CaSecret"), "SMG4[", "whatever")
