"""A Python as Lambda has it: the interpreter of a runtime with what AWS ships, and nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from emberpool_cdk.layer_bytecode import Compiler, find_compiler

# Besides Python's own library this is all that is there before the layer comes (boto3 is of no use here).
SHIPPED_BY_LAMBDA = ("awslambdaric", "snapshot-restore-py", "simplejson")


def python_of_lambda(runtime: str, folder: Path) -> Path:
    """Make it in `folder`, with AWS's packages in the versions that we test with; return its program.

    A machine without this Python gets it by uv, once; the test is skipped only where uv cannot have it.
    """
    compiler = _python(runtime.removeprefix("python"))
    subprocess.run([compiler.program, "-m", "venv", "--without-pip", folder], check=True)
    program = folder / "bin" / "python"
    wanted = [f"{name}=={metadata.version(name)}" for name in SHIPPED_BY_LAMBDA]
    command = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet", "--no-input", "--no-deps"]
    subprocess.run([*command, "--no-compile", "--only-binary=:all:", *wanted], check=True)
    return program


def _python(version: str) -> Compiler:
    if (found := find_compiler(version)) is not None:
        return found
    uv = Path(sys.executable).parent / "uv"
    installed = subprocess.run([uv, "python", "install", version], check=False, capture_output=True, text=True)
    find_compiler.cache_clear()
    if (found := find_compiler(version)) is not None:
        return found
    assert installed.returncode, f"uv has installed Python {version}, but it is not found"
    pytest.skip(f"there is no Python {version}, and uv could not download it; next: have python{version} on PATH")
