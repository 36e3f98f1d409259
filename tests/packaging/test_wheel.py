"""The wheel is complete: in an environment where emberpool is only what the wheel has, a user's app synthesizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

# One worker runs all of these: the wheel is built once.

CHECKOUT = Path(__file__).parents[2]
CDK = Path("node_modules") / "aws-cdk" / "bin" / "cdk"
USERS_APP = """
import sys
from aws_cdk import App, Stack, aws_ec2 as ec2, aws_lambda as lambda_, aws_rds as rds
from emberpool_cdk import PoolDatabase, PoolMonitoring, PoolProxy


class Shop(Stack):
    def __init__(self, scope, construct_id, database_of):
        super().__init__(scope, construct_id)
        vpc = ec2.Vpc(self, "Vpc", max_azs=2)
        database = database_of(self, vpc)
        function = lambda_.Function(self, "Orders", runtime=lambda_.Runtime.PYTHON_3_13, handler="index.handler",
            architecture=lambda_.Architecture.ARM_64, code=lambda_.Code.from_inline("def handler(e, c): ..."), vpc=vpc)
{lines}


def instance(stack, vpc):
    engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
    return rds.DatabaseInstance(stack, "Db", engine=engine, vpc=vpc)


def cluster(stack, vpc):
    engine = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_17_7)
    return rds.DatabaseCluster(stack, "Db", engine=engine, vpc=vpc, serverless_v2_max_capacity=4,
        writer=rds.ClusterInstance.serverless_v2("writer"))


app = App()
Shop(app, "Shop", {database_of})
app.synth()
assert "psycopg" not in sys.modules, "the driver was imported while synthesizing"
import emberpool_cdk
print("FROM", emberpool_cdk.__file__)
"""


def _three_lines(page: str) -> str:
    """Return the lines that the page shows for an app of one's own, word for word."""
    found = re.findall(
        r"```python\n(?:from emberpool_cdk import [^\n]*\n\n)?(pool = PoolProxy\(.*?)```", page, re.DOTALL
    )
    lines: str
    (lines,) = [each for each in found if "PoolMonitoring" in each]
    assert len(lines.splitlines()) == 3
    return lines


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without build isolation: its backend is one of our development dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", folder, CHECKOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that was empty before `emberpool[cdk]` was installed into it from the wheel."""
    folder = tmp_path_factory.mktemp("users") / "venv"
    uv = str(Path(sys.executable).parent / "uv")  # with a cache: seconds where pip would download 60 MB
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    program = folder / "bin" / "python"
    command = [uv, "pip", "install", "--quiet", "--python", str(program), f"emberpool[cdk] @ {wheel.as_uri()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("database", ["instance", "cluster"])
def test_three_lines_of_the_readme_synthesize_from_the_wheel(python: Path, tmp_path: Path, database: str) -> None:
    """The real `cdk synth` of a user's app with those lines, word for word: layer, image context, service, alarms."""
    lines = _three_lines((CHECKOUT / "README.md").read_text())
    if database == "cluster":
        # The one word that differs; docs/cdk.md has it in its table.
        lines = lines.replace("PoolDatabase.from_instance(database)", "PoolDatabase.from_cluster(database)")
    (tmp_path / "app.py").write_text(
        USERS_APP.replace("{lines}", textwrap.indent(lines, " " * 8)).replace("{database_of}", database)
    )
    done = subprocess.run(
        ["node", CHECKOUT / CDK, "synth", "--quiet", "--app", f"{python} app.py", "--no-notices", "--no-color"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            "CDK_DISABLE_CLI_TELEMETRY": "1",
            **_pip_settings(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    (origin,) = [line.removeprefix("FROM ") for line in said.splitlines() if line.startswith("FROM ")]
    assert Path(origin).is_relative_to(python.parents[1])
    _check_assembly(tmp_path / "cdk.out")


def _check_assembly(assets: Path) -> None:
    assert list(assets.glob("asset.*/python/emberpool/handler.py"))
    (dockerfile,) = assets.glob("asset.*/Dockerfile")
    assert (dockerfile.parent / "requirements.txt").is_file()
    assert (dockerfile.parent / "emberpool_proxy" / "__main__.py").is_file()
    resources = json.loads((assets / "Shop.template.json").read_text())["Resources"].values()
    kinds = {each["Type"] for each in resources}
    assert {"AWS::ECS::Service", "AWS::Lambda::LayerVersion", "AWS::CloudWatch::Dashboard"} <= kinds
    (function,) = [each["Properties"] for each in resources if each["Type"] == "AWS::Lambda::Function"]
    assert "EMBERPOOL_SECRET_ARN" in function["Environment"]["Variables"]
    assert len(function["Layers"]) == 1


def test_pages_show_the_same_three_lines() -> None:
    """README and docs/cdk.md show what the other does, but for what the README says of each line."""
    readme, page = (_three_lines((CHECKOUT / name).read_text()) for name in ("README.md", "docs/cdk.md"))
    assert re.sub(r"  # .*", "", readme) == re.sub(r"  # .*", "", page)


def _pip_settings() -> dict[str, str]:
    # How this machine reaches its package index; nothing else of our environment reaches the user's app.
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}


def test_wheel_has_the_packages_and_no_more(wheel: Path) -> None:
    """The wheel carries four packages, the two lock files and the Dockerfile; no tests, no app of ours."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"emberpool", "emberpool_proxy", "emberpool_cdk", "emberpool_local"}
    for name in ("Dockerfile", ".dockerignore"):
        assert f"emberpool_proxy/{name}" in names
    assert {"emberpool_cdk/lock/layer.txt", "emberpool_cdk/lock/proxy.txt"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_cdk_extra_names_what_the_constructs_import(wheel: Path) -> None:
    """Every third-party module that emberpool_cdk imports is a requirement of emberpool[cdk]."""
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        requirements = Parser().parsestr(content.read(metadata).decode()).get_all("Requires-Dist") or []
        sources = [
            content.read(name).decode()
            for name in content.namelist()
            if name.startswith("emberpool_cdk/") and name.endswith(".py")
        ]
    declared = {re.split(r"[\s<>=!~;\[]", each)[0] for each in requirements if re.search("extra == .cdk.", each)}
    provided = {"aws-cdk-lib": {"aws_cdk", "jsii"}}  # jsii is the CDK's own runtime
    modules = set().union(*(provided.get(name, {name.replace("-", "_")}) for name in declared))
    imported = {match for source in sources for match in re.findall(r"(?m)^(?:from|import) (\w+)", source)}
    missing = imported - modules - set(sys.stdlib_module_names) - {"emberpool", "emberpool_proxy", "emberpool_cdk"}
    assert not missing
