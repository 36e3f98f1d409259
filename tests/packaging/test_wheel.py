"""The wheel is complete: in an environment where emberpool is only what the wheel has, a user's app synthesizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

# One worker runs all of these: the wheel is built once.

CHECKOUT = Path(__file__).parents[2]
USERS_APP = """
import sys
from aws_cdk import App, Stack, aws_ec2 as ec2, aws_lambda as lambda_, aws_rds as rds
from emberpool_cdk import PoolDatabase, PoolProxy

app = App(outdir=sys.argv[1])
stack = Stack(app, "Shop")
vpc = ec2.Vpc(stack, "Vpc", max_azs=2)
engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
db = rds.DatabaseInstance(stack, "Db", engine=engine, vpc=vpc)
function = lambda_.Function(stack, "Orders", runtime=lambda_.Runtime.PYTHON_3_13, handler="index.handler",
    architecture=lambda_.Architecture.ARM_64, code=lambda_.Code.from_inline("def handler(e, c): ..."), vpc=vpc)

pool = PoolProxy(stack, "Pool", vpc=vpc, database=PoolDatabase.from_instance(db, max_connections=100))
pool.attach(function)
app.synth()
assert "psycopg" not in sys.modules, "the driver was imported while synthesizing"
import emberpool_cdk
print(emberpool_cdk.__file__)
"""


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
    """A Python with the wheel, and our other packages for what it depends on; no checkout is on its path."""
    folder = tmp_path_factory.mktemp("users") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The folder as such: editable installs hang on its .pth files, which Python reads in site folders only.
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{ours}\n")
    return folder / "bin" / "python"


def test_users_app_synthesizes_from_the_wheel(python: Path, tmp_path: Path) -> None:
    """Database, pool and an attached function synthesize, layer and image context included, without the checkout."""
    app = tmp_path / "app.py"
    app.write_text(USERS_APP)
    done = subprocess.run(
        [python, app, tmp_path / "cdk.out"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20", **_pip_settings()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])
    assets = tmp_path / "cdk.out"
    assert list(assets.glob("asset.*/python/emberpool/handler.py"))
    (dockerfile,) = assets.glob("asset.*/Dockerfile")
    assert (dockerfile.parent / "requirements.txt").is_file()
    assert (dockerfile.parent / "emberpool_proxy" / "__main__.py").is_file()
    resources = json.loads((assets / "Shop.template.json").read_text())["Resources"].values()
    assert {"AWS::ECS::Service", "AWS::Lambda::LayerVersion"} <= {each["Type"] for each in resources}


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
