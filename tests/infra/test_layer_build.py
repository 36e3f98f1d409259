"""What a layer is built from and with; what comes out is in test_layer_artifact.py."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aws_cdk import App, Stack

from emberpool_cdk import LayerBuildFailed, LayerUnsupported, WarmConnectionLayer, layer_build
from emberpool_cdk.layer_build import LayerBuild
from emberpool_cdk.layer_bytecode import BytecodeFailed, Compiler, compile_modules, find_compiler
from emberpool_cdk.source_files import lock_file


@pytest.fixture
def no_other_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine whose PATH is one empty folder, without pyenv and uv; returns that folder."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    find_compiler.cache_clear()
    yield folder
    find_compiler.cache_clear()


def _program(path: Path, cache_tag: str, release_level: str, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps([cache_tag, release_level, version])}'\n")
    path.chmod(0o755)
    return path


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


def test_powertools_has_a_lock_of_its_own_with_the_same_psycopg() -> None:
    """Only the variant asks for Powertools, its hash is another, and both layers get the same driver."""
    plain, variant = LayerBuild("arm64", "python3.13"), LayerBuild("arm64", "python3.13", with_powertools=True)
    assert "aws-lambda-powertools==" in variant.requirements()
    assert "aws-lambda-powertools" not in plain.requirements()
    assert "boto3" not in variant.requirements()
    assert plain.content_hash() != variant.content_hash()
    pins = re.compile(r"^psycopg\S*==\S+", re.MULTILINE)
    assert pins.findall(lock_file("layer").read_text()) == pins.findall(lock_file("layer-powertools").read_text())


def test_python_of_the_runtime_is_found_behind_a_broken_shim(no_other_python: Path, tmp_path: Path) -> None:
    """pyenv's newest final version is taken: not a shim that is switched off, nor a pre-release."""
    shim = _program(no_other_python / "python3.14", "", "", "")
    shim.write_text("#!/bin/sh\nexit 127\n")
    versions = tmp_path / "pyenv" / "versions"
    _program(versions / "3.14.2" / "bin" / "python3.14", "cpython-314", "final", "3.14.2")
    wanted = _program(versions / "3.14.10" / "bin" / "python3.14", "cpython-314", "final", "3.14.10")
    _program(versions / "3.14.11" / "bin" / "python3.14", "cpython-314", "candidate", "3.14.11")
    assert find_compiler("3.14") == Compiler(wanted, "3.14.10")
    assert LayerBuild("arm64", "python3.14").warning is None


def test_python_that_only_uv_knows_is_found(no_other_python: Path, tmp_path: Path) -> None:
    """uv is asked for what it has installed, never to download."""
    wanted = _program(tmp_path / "uv" / "python3.14", "cpython-314", "final", "3.14.1")
    uv = no_other_python / "uv"
    uv.write_text(f'#!/bin/sh\n[ "$*" = "python find --offline --no-python-downloads 3.14" ] && echo {wanted}\n')
    uv.chmod(0o755)
    assert find_compiler("3.14") == Compiler(wanted, "3.14.1")


def test_missing_python_is_a_warning_with_its_cost_and_cure(no_other_python: Path) -> None:
    """The warning names the runtime, what slows down and what to install; the layer's hash tells it apart."""
    build = LayerBuild("arm64", "python3.14")
    assert build.compiler is None
    assert "the layer for python3.14 has no compiled bytecode" in str(build.warning)
    assert "imports take about twice as long" in str(build.warning)
    assert "Install Python 3.14" in str(build.warning)
    without = build.content_hash()
    _program(no_other_python / "python3.14", "cpython-314", "final", "3.14.1")
    find_compiler.cache_clear()
    assert build.content_hash() != without


def test_layer_without_bytecode_is_a_warning_of_the_synthesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack whose layer is bundled has sources only and says so; one that bundles nothing says nothing."""
    monkeypatch.setattr(layer_build, "find_compiler", lambda version: None)
    app = App(outdir=str(tmp_path / "cdk.out"), context={"aws:cdk:bundling-stacks": ["Bundled"]})
    for name in ("Bundled", "Unbundled"):
        WarmConnectionLayer(Stack(app, name), "Layer")
    assembly = app.synth()
    (message,) = assembly.get_stack_by_name("Bundled").messages
    assert "has no compiled bytecode" in str(message.entry.data)
    assert not assembly.get_stack_by_name("Unbundled").messages
    assert list(Path(assembly.directory).glob("asset.*/python/emberpool/handler.py"))
    assert not list(Path(assembly.directory).glob("asset.*/python/**/*.pyc"))


def test_pyenv_that_may_not_be_read_is_passed_over(no_other_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYENV_ROOT outlives su and sudo: what is on PATH is found all the same."""

    def refuse(*_: object) -> None:
        raise PermissionError("Permission denied")  # as root would not be

    monkeypatch.setattr(Path, "glob", refuse)
    program = _program(no_other_python / "python3.13", "cpython-313", "final", "3.13.9")
    assert find_compiler("3.13") == Compiler(program, "3.13.9")


def test_bytecode_is_the_same_wherever_it_is_compiled(tmp_path: Path) -> None:
    """Two folders with the same module get the same bytes, and Lambda's path in them."""
    source = "def f(x):\n    return x in {'a', 'b', 'c', 'd', 'e', 'f'}\n"
    compiler = find_compiler(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert compiler is not None
    for name in ("one", "another_folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text(source)
        compile_modules(tmp_path / name, compiler)
    one, other = (path.read_bytes() for path in tmp_path.rglob("*.pyc"))
    assert one == other
    assert b"/opt/python/module.py" in one


def test_module_that_does_not_compile_is_one_tidy_error(tmp_path: Path) -> None:
    """The message has the compiler's own words."""
    (tmp_path / "module.py").write_text("def f(:\n")
    with pytest.raises(BytecodeFailed, match=r"(?s)could not compile .* said:.*SyntaxError"):
        compile_modules(tmp_path, Compiler(Path(sys.executable), "3.x"))
