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
    context = json.loads((CHECKOUT / "cdk.json").read_text())["context"]
    outdir = str(tmp_path_factory.mktemp("agreement") / "cdk.out")
    app = App(outdir=outdir, context={**context, "aws:cdk:bundling-stacks": []})
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
