"""cfn-lint, which knows CloudFormation's schemas, has nothing to say about our templates, not even for information."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import lint
from cfnlint.config import ManualArgs
from tests.infra.checked_apps import VARIANTS, our_app, templates, users_app
from tests.infra.conftest import Template

REGIONS = ["us-east-1"]
CHECKS = ManualArgs(
    regions=REGIONS,
    include_checks=["I"],
    ignore_checks=["I1022"],  # prefers Fn::Sub to Fn::Join, which is how the CDK writes
)
# What EC2 takes as the description of a group's rule, which the linter does not know: there is no apostrophe.
DESCRIPTION = re.compile(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{0,255}")
OF_THE_USER = ("Resources/Function", "Resources/Database")


def _remarks(template: Template) -> list[str]:
    return _remarks_about(json.dumps(template))


@functools.cache  # most variants have the same network and database
def _remarks_about(text: str) -> list[str]:
    found = lint(text, config=CHECKS)
    return [f"{'/'.join(map(str, each.path))}: {each.rule.id} {each.message}" for each in found]


def _refused_descriptions(template: Template) -> list[str]:
    kinds = ("AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress")
    rules: list[dict[str, Any]] = []
    for properties in (each for kind in kinds for each in _of_type(template, kind)):
        rules += [properties, *properties.get("SecurityGroupIngress", []), *properties.get("SecurityGroupEgress", [])]
    texts = [rule.get("Description", "") for rule in rules]
    # What CloudFormation fills in has letters, digits and dots.
    return [text for text in texts if isinstance(text, str) and not DESCRIPTION.fullmatch(text)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_app_is_clean(tmp_path: Path, variant: str) -> None:
    """Each template of our app is one that CloudFormation takes, by the linter's schemas and rules."""
    for name, template in templates(our_app(tmp_path, variant)).items():
        assert _remarks(template) == [], name
        assert _refused_descriptions(template) == [], name


@pytest.mark.parametrize("endpoint", ["nlb", "dns"])
def test_users_app_has_no_remark_about_ours(tmp_path: Path, endpoint: str) -> None:
    """In a user's app with a key and the endpoints there are remarks about what the user made, and no others."""
    (template,) = templates(users_app(tmp_path, endpoint)).values()
    assert [each for each in _remarks(template) if not each.startswith(OF_THE_USER)] == []
    assert _refused_descriptions(template) == []


def test_linter_sees_what_is_wrong(tmp_path: Path) -> None:
    """An empty list means something: a size that Fargate has not, a wrong effect and an apostrophe are found."""
    template = templates(our_app(tmp_path, "default"))["EmberpoolPool"]
    (task,) = _of_type(template, "AWS::ECS::TaskDefinition")
    task["Memory"] = "1000000"
    _of_type(template, "AWS::IAM::Policy")[0]["PolicyDocument"]["Statement"][0]["Effect"] = "Alow"
    _of_type(template, "AWS::EC2::SecurityGroupIngress")[0]["Description"] = "a function's queries"
    remarks = _remarks(template)
    assert any("Alow" in each for each in remarks)
    assert any("Memory" in each or "Cpu" in each for each in remarks)
    assert _refused_descriptions(template) == ["a function's queries"]


def _of_type(template: Template, kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]
