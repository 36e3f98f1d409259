"""The default app's templates, synthesized once: infra's side of the agreement."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

# Read when aws_cdk is imported.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

from aws_cdk import App

from emberpool_app.deployment import EXAMPLE, POOL, add_stacks

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The templates of the pool and of the example, as {"pool": …, "example": …}."""
    return _synthesized(tmp_path_factory.mktemp("agreement"))


@pytest.fixture(scope="session")
def templates_with_all(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same of a pool with every part that it can have."""
    return _synthesized(tmp_path_factory.mktemp("agreement_with_all"), dataEndpoint="true")


def _synthesized(folder: Path, **given: str) -> dict[str, dict[str, Any]]:
    context = json.loads((CHECKOUT / "cdk.json").read_text())["context"]
    app = App(outdir=str(folder / "cdk.out"), context={**context, "aws:cdk:bundling-stacks": [], **given})
    add_stacks(app)
    assembly = app.synth()
    return {
        "pool": assembly.get_stack_by_name(POOL).template,
        "example": assembly.get_stack_by_name(EXAMPLE).template,
    }


@pytest.fixture(scope="session")
def dockerfile() -> str:
    """The text of the proxy's Dockerfile."""
    return (CHECKOUT / "proxy_service" / "emberpool_proxy" / "Dockerfile").read_text()
