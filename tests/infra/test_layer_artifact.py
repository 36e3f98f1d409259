"""The layer's zips as `make layer` builds them: what is in them, and that a handler runs on them alone."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_lambda as lambda_
from tests.infra.lambda_python import python_of_lambda

from emberpool import settings as names
from emberpool_cdk import WarmConnectionLayer, layer_build
from emberpool_cdk.layer_build import RUNTIMES, LayerBuild
from emberpool_cdk.layer_bytecode import find_compiler
from emberpool_local.lambda_runtime import Fleet
from emberpool_local.postgres.server import EmbeddedPostgres
from layer_zip import write_zip

CHECKOUT = Path(__file__).parents[2]
THIS_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
THIS_MACHINE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
OTHER_MACHINE = "x86_64" if THIS_MACHINE == "arm64" else "arm64"
ELF_MACHINES = {"arm64": 183, "x86_64": 62}
LARGEST = "python3.12"  # the one that has typing_extensions, too
MOST_ZIPPED_BYTES = 5_000_000
# For the Python of the tests, and for the newest that this machine has besides.
FOUND = [each for each in RUNTIMES if find_compiler(each.removeprefix("python"))]
RUNNABLE = sorted({THIS_PYTHON, *FOUND[-1:]})

APP = """
import os, sys
compiled_here = []
sys.addaudithook(lambda event, values: compiled_here.append(str(values[1])) if event == "compile" else None)
import emberpool, psycopg
compiled_at_import = [name for name in compiled_here if name.startswith(os.environ["PYTHONPATH"])]
from emberpool import warm_connection

@warm_connection
def handler(event, context, connection):
    return {
        "answer": connection.execute("select %s::int + 2", [event["number"]]).fetchone()[0],
        "implementation": psycopg.pq.__impl__,
        "version": psycopg.__version__,
        "python": "python%d.%d" % sys.version_info[:2],
        "from": [emberpool.__file__, psycopg.__file__],
        "compiled_at_import": compiled_at_import,
        "strangers": sorted({"boto3", "botocore", "aws_lambda_powertools"} & set(sys.modules)),
    }
"""

BuildLayer = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def layer_zip(tmp_path_factory: pytest.TempPathFactory) -> BuildLayer:
    """Builds the zip of a runtime and architecture, each only once."""
    built: dict[tuple[str, str], Path] = {}

    def build(runtime: str, architecture: str) -> Path:
        if (runtime, architecture) not in built:
            built[runtime, architecture] = _build(tmp_path_factory.mktemp("layer"), runtime, architecture)
        return built[runtime, architecture]

    return build


def _build(folder: Path, runtime: str, architecture: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # 3.11 has no arm64 wheels, so it is no supported runtime; here it only has to run what was built.
        patch.setattr(layer_build, "RUNTIMES", (*RUNTIMES, THIS_PYTHON))
        LayerBuild(architecture, runtime).write(str(folder / "content"))
    write_zip(folder / "content", folder / "layer.zip")
    shutil.rmtree(folder / "content")
    return folder / "layer.zip"


def _unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder / "python"


@pytest.mark.parametrize("runtime", RUNNABLE)
async def test_handler_runs_on_the_layer_alone(
    runtime: str, layer_zip: BuildLayer, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real runtime client runs a handler with the unpacked layer and nothing else of ours, from bytecode."""
    opt = _unpacked(layer_zip(runtime, THIS_MACHINE), tmp_path / "opt")
    code = tmp_path / "task"
    code.mkdir()
    (code / "app.py").write_text(APP)
    # Environments are started with the Python that runs us: here with one that has only what Lambda ships.
    monkeypatch.setattr(sys, "executable", str(python_of_lambda(runtime, tmp_path / "runtime")))
    variables = {
        "PYTHONPATH": str(opt),
        names.HOST: postgres.host,
        names.PORT: str(postgres.port),
        names.DATABASE: "postgres",
        names.USER: postgres.superuser,
        names.PASSWORD: postgres.superuser_password,
        names.SSLMODE: "disable",
    }
    async with Fleet("app:handler", code, variables, start_method="process") as fleet:
        outcome = await fleet.invoke(b'{"number": 40}')
    assert outcome.status == "succeeded", outcome.log
    assert json.loads(outcome.payload) == {
        "answer": 42,
        "implementation": "binary",
        "version": metadata.version("psycopg"),
        "python": runtime,
        "from": [str(opt / "emberpool" / "__init__.py"), str(opt / "psycopg" / "__init__.py")],
        "compiled_at_import": [],
        "strangers": [],
    }


def test_same_input_gives_the_same_zip(layer_zip: BuildLayer, tmp_path: Path) -> None:
    """A second build, in another folder, is byte for byte the first."""
    again = _build(tmp_path, RUNNABLE[-1], THIS_MACHINE)
    first = layer_zip(RUNNABLE[-1], THIS_MACHINE)
    assert _digests(again) == _digests(first)
    assert _sha256(again) == _sha256(first)


@pytest.mark.parametrize("runtime", RUNNABLE)
def test_bytecode_is_shipped_and_never_rechecked(runtime: str, layer_zip: BuildLayer) -> None:
    """Every module has bytecode that is valid whatever the zip did to timestamps, and names Lambda's path only."""
    tag = f"cpython-{runtime.removeprefix('python').replace('.', '')}"
    with zipfile.ZipFile(layer_zip(runtime, THIS_MACHINE)) as packed:
        sources = {Path(name) for name in packed.namelist() if name.endswith(".py")}
        compiled = {Path(name) for name in packed.namelist() if name.endswith(".pyc")}
        assert compiled == {path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc" for path in sources}
        assert Path("python/emberpool/handler.py") in sources
        for path in compiled:
            content = packed.read(str(path))
            assert int.from_bytes(content[4:8], "little") == 0b01  # hash-based, unchecked (PEP 552)
            assert b"/opt/python/" in content
            assert b"embercdk" not in content
            assert b"content/python" not in content


def test_zip_is_small_and_holds_only_what_runs(layer_zip: BuildLayer) -> None:
    """At most 5 MB, no tests, boto3, Powertools or scripts; licences and the versions that psycopg reads are there."""
    archive = layer_zip(LARGEST, OTHER_MACHINE)
    assert archive.stat().st_size <= MOST_ZIPPED_BYTES
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
    assert {entry.filename.split("/")[0] for entry in entries} == {"python"}
    top = {entry.filename.split("/")[1].partition("-")[0] for entry in entries}
    ours = {"emberpool", "psycopg", "psycopg_binary", "psycopg_binary.libs"}
    assert top - {"__pycache__"} == {*ours, "typing_extensions", "typing_extensions.py"}
    assert not [entry.filename for entry in entries if "/tests/" in entry.filename or entry.filename.endswith(".pyi")]
    in_dist_info = {Path(entry.filename).name for entry in entries if ".dist-info/" in entry.filename}
    assert {"METADATA", "LICENSE", "LICENSE.txt"} <= in_dist_info
    assert not in_dist_info & {"RECORD", "INSTALLER", "REQUESTED"}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}


def test_other_architecture_gets_its_own_libraries(layer_zip: BuildLayer) -> None:
    """A layer for the other processor has its libraries, all of them, and bytecode from this machine's Python."""
    with zipfile.ZipFile(layer_zip(LARGEST, OTHER_MACHINE)) as packed:
        libraries = [name for name in packed.namelist() if ".so" in Path(name).suffixes]
        machines = {int.from_bytes(packed.read(name)[18:20], "little") for name in libraries}
        is_compiled = any(name.endswith(".pyc") for name in packed.namelist())
    assert any(name.startswith("python/psycopg_binary/pq.cpython-312") for name in libraries)
    assert machines == {ELF_MACHINES[OTHER_MACHINE]}
    assert is_compiled == (find_compiler("3.12") is not None)


def test_cdk_publishes_what_make_layer_builds(layer_zip: BuildLayer, tmp_path: Path) -> None:
    """The asset that `cdk deploy` packs has the same files with the same bytes and modes."""
    app = App(outdir=str(tmp_path / "cdk.out"))
    architecture = lambda_.Architecture.ARM_64 if OTHER_MACHINE == "arm64" else lambda_.Architecture.X86_64
    WarmConnectionLayer(Stack(app, "Users"), "Layer", architecture=architecture, runtime=lambda_.Runtime.PYTHON_3_12)
    (asset,) = (path for path in Path(app.synth().directory).iterdir() if path.is_dir())
    files = [path for path in asset.rglob("*") if path.is_file()]
    expected = layer_zip(LARGEST, OTHER_MACHINE)
    with zipfile.ZipFile(expected) as packed:
        assert {path.relative_to(asset).as_posix(): path.read_bytes() for path in files} == {
            name: packed.read(name) for name in packed.namelist()
        }
    assert {path.stat().st_mode for path in files} == {0o100644}


def test_make_layer_builds_powertools_on_request(tmp_path: Path) -> None:
    """The command prints one row for the zip that was asked for; Powertools is in it, boto3 is not."""
    command = [sys.executable, "infra/build_layers.py", "--with-powertools", "--runtime", "python3.13"]
    done = subprocess.run(
        [*command, "--architecture", "arm64", "--output", tmp_path / "dist"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    assert archive.name == "emberpool-layer-powertools-python3.13-arm64.zip"
    headings, row = done.stdout.splitlines()
    assert headings.split() == ["file", "python", "architecture", "zipped", "MB", "pyc", "sha256"]
    assert row.startswith(archive.name)
    assert row.endswith(_sha256(archive))
    with zipfile.ZipFile(archive) as packed:
        top = {name.split("/")[1] for name in packed.namelist()}
    assert {"aws_lambda_powertools", "emberpool", "psycopg"} <= top
    assert not {"boto3", "botocore"} & top


def _sha256(archive: Path) -> str:
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def _digests(archive: Path) -> dict[str, int]:
    with zipfile.ZipFile(archive) as packed:
        return {entry.filename: entry.CRC for entry in packed.infolist()}
