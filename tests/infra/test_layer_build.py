"""The layer is built from the lock by the real pip, and works in a Python that has nothing else."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from aws_cdk import App, Stack

from emberpool_cdk import LayerBuildFailed, LayerUnsupported, WarmConnectionLayer, layer_build
from emberpool_cdk.layer_build import LayerBuild

THIS_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
THIS_MACHINE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


@pytest.fixture(scope="module")
def built_for_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer for the Python and processor that run this test."""
    folder = tmp_path_factory.mktemp("layer")
    with pytest.MonkeyPatch.context() as patch:
        # 3.11 has no arm64 wheels, so it is no supported runtime; here it only has to import what was built.
        patch.setattr(layer_build, "RUNTIMES", (*layer_build.RUNTIMES, THIS_PYTHON))
        LayerBuild(architecture=THIS_MACHINE, runtime=THIS_PYTHON).write(str(folder))
    return folder / "python"


def test_layer_is_importable_on_its_own(built_for_this_machine: Path) -> None:
    """A Python with nothing but the layer imports emberpool and psycopg's C implementation from it."""
    program = (
        "import emberpool, psycopg; from emberpool import warm_connection; "
        "assert psycopg.pq.__impl__ == 'binary'; print(emberpool.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(built_for_this_machine), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(built_for_this_machine))


def test_bytecode_is_shipped_and_never_rechecked(built_for_this_machine: Path) -> None:
    """Every module has bytecode that is valid whatever the zip did to timestamps, and names Lambda's path."""
    sources = [path for path in built_for_this_machine.rglob("*.py") if path.parent.name in ("emberpool", "psycopg")]
    assert sources
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        content = compiled.read_bytes()
        assert int.from_bytes(content[4:8], "little") == 0b01  # hash-based, unchecked (PEP 552)
        assert b"/opt/python/" in content


def test_other_architecture_gets_its_own_libraries(tmp_path: Path) -> None:
    """An arm64 layer has arm64 libraries, built on whatever machine runs this."""
    LayerBuild(architecture="arm64", runtime="python3.13").write(str(tmp_path))
    libraries = list((tmp_path / "python" / "psycopg_binary").glob("*.so"))
    assert libraries
    machine = int.from_bytes(libraries[0].read_bytes()[18:20], "little")
    assert machine == 183  # EM_AARCH64
    assert not list(tmp_path.rglob("bin"))


def test_markers_are_those_of_the_runtime() -> None:
    """A requirement for older Pythons is in their layer only, whatever Python synthesizes."""
    assert "typing-extensions==" in LayerBuild("arm64", "python3.12").requirements()
    newest = LayerBuild("arm64", "python3.13").requirements()
    assert "typing-extensions==" not in newest
    assert "psycopg-binary==" in newest
    assert "tzdata" not in newest  # Windows
    assert ";" not in newest


def test_hash_changes_with_what_is_built_only() -> None:
    """The same sources give the same hash; another architecture or runtime another."""
    first = LayerBuild("arm64", "python3.13").content_hash()
    assert first == LayerBuild("arm64", "python3.13").content_hash()
    assert first != LayerBuild("x86_64", "python3.13").content_hash()
    assert first != LayerBuild("arm64", "python3.12").content_hash()


def test_failing_pip_is_one_tidy_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index that has nothing gives our error with pip's words, not a JavaScript stack."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    stack = Stack(App(outdir=str(tmp_path / "cdk.out")), "Users")
    with pytest.raises(LayerBuildFailed, match=r"(?s)python3.13 on arm64 .* pip said:.*psycopg") as caught:
        WarmConnectionLayer(stack, "Layer")
    assert "jsii" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_unsupported_architecture_is_refused() -> None:
    """The message lists the architectures that work."""
    with pytest.raises(LayerUnsupported, match="architecture must be one of arm64, x86_64, got s390x"):
        LayerBuild("s390x", "python3.13")
