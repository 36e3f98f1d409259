"""The default app is as somebody has last looked at it: what a change of the code changes in AWS is seen in review."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.infra.conftest import CHECKOUT, Synthesized
from tests.infra.stack_snapshot import FOLDER, HASH, as_text, difference

from emberpool_app.deployment import DATABASE, EXAMPLE, NETWORK, POOL

STACKS = (NETWORK, DATABASE, POOL, EXAMPLE)
WHAT_TO_DO = "If that is what you want to deploy: `make snapshot` accepts it, and the diff goes into your commit."


@pytest.mark.parametrize("name", STACKS)
def test_stack_is_as_it_was_accepted(synthesized: Synthesized, name: str) -> None:
    """The template says what the file says; otherwise the difference is shown, and how to accept it."""
    differs = difference(name, synthesized.templates[name])
    if differs:
        pytest.fail(f"{name} has changed:\n{differs}\n\n{WHAT_TO_DO}", pytrace=False)


def test_no_file_is_left_of_a_stack_that_is_gone() -> None:
    """There is a file for each stack, and no other."""
    assert {path.stem for path in FOLDER.iterdir()} == set(STACKS)


def test_difference_is_a_few_lines_and_names_the_resource(synthesized: Synthesized) -> None:
    """Of a changed property one line goes and one comes, below the name of its resource."""
    changed = copy.deepcopy(synthesized.templates[POOL])
    _only(changed, "AWS::ECS::Service")["DesiredCount"] += 1
    lines = difference(POOL, changed).splitlines()
    before = difference(POOL, synthesized.templates[POOL]).splitlines()
    new = [line for line in lines if line not in before]
    assert [line for line in new if line[:2] in ("- ", "+ ")] == ["-      DesiredCount: 2", "+      DesiredCount: 3"]
    assert [line for line in new if line.startswith("@@") and line.endswith(" PoolService0732D25C")]


def test_changed_widget_is_a_few_lines(synthesized: Synthesized) -> None:
    """The dashboard, which is one string, is compared widget by widget."""
    text = as_text(synthesized.templates[POOL])
    assert "title: Logins that failed" in {line.strip() for line in text.splitlines()}


def test_content_of_assets_changes_nothing(synthesized: Synthesized) -> None:
    """Other sources of the layer, of the image or of the example give the same text."""
    for name, template in synthesized.templates.items():
        written = json.dumps(template)
        other = HASH.sub("0" * 64, written)
        assert as_text(json.loads(other)) == as_text(template), name
        assert (other != written) == (name in (POOL, EXAMPLE)), name


def test_text_has_nothing_of_this_machine(synthesized: Synthesized) -> None:
    """Neither paths of the checkout nor the home folder nor what the CDK says about its own version is in it."""
    for name, template in synthesized.templates.items():
        text = as_text(template)
        assert str(CHECKOUT) not in text, name
        assert "BootstrapVersion" not in text, name


def _only(template: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]
    result: dict[str, Any] = found
    return result
