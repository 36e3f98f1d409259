"""One synthesized app for all tests that only read templates: synthesizing is what costs time here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read when aws_cdk is imported.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

from aws_cdk import App, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_secretsmanager as secretsmanager

from emberpool_app.deployment import DATABASE, EXAMPLE, NETWORK, POOL, add_stacks
from emberpool_cdk import ConnectionBudget, PoolDatabase, PoolProxy

CHECKOUT = Path(__file__).parents[2]
Template = dict[str, Any]


def make_app(folder: Path, **context: Any) -> App:
    """Return an app with cdk.json's context that bundles nothing: layers are built in their own tests."""
    ours = json.loads((CHECKOUT / "cdk.json").read_text())["context"]
    return App(outdir=str(folder / "cdk.out"), context={**ours, "aws:cdk:bundling-stacks": [], **context})


@dataclass(frozen=True)
class Synthesized:
    """The default app's templates and budget."""

    folder: Path
    templates: dict[str, Template]
    budget: ConnectionBudget

    def resources(self, stack: str, kind: str) -> list[Template]:
        """Return the resources of one type."""
        return [each for each in self.templates[stack]["Resources"].values() if each["Type"] == kind]

    def only(self, stack: str, kind: str) -> Template:
        """Return the properties of the one resource of a type."""
        (found,) = self.resources(stack, kind)
        properties: Template = found.get("Properties", {})
        return properties


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Synthesized:
    """The default app, synthesized once per worker."""
    app = make_app(tmp_path_factory.mktemp("default_app"))
    budget = add_stacks(app)
    assembly = app.synth()
    templates = {name: assembly.get_stack_by_name(name).template for name in (NETWORK, DATABASE, POOL, EXAMPLE)}
    return Synthesized(Path(assembly.directory), templates, budget)


class PoolInAStack:
    """A user's own stack with a VPC and a pool before a database that is run elsewhere."""

    def __init__(self, folder: Path, **pool: Any) -> None:
        self.app = make_app(folder)
        self.stack = Stack(self.app, "Users")
        self.vpc = ec2.Vpc(self.stack, "Vpc", max_azs=2, nat_gateways=1)
        secret = secretsmanager.Secret.from_secret_name_v2(self.stack, "Secret", "theirs")
        maximum = pool.pop("max_connections", 200)
        self.database = PoolDatabase(host="db.example.com", name="shop", secret=secret, max_connections=maximum)
        self.pool = PoolProxy(self.stack, "Pool", vpc=self.vpc, database=self.database, **pool)

    def template(self) -> Template:
        """Synthesize and return the stack's template."""
        template: Template = self.app.synth().get_stack_by_name("Users").template
        return template


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the clone."""
    return CHECKOUT
