"""A Python as Lambda has it: the interpreter of a runtime with what AWS ships, and nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from emberpool_cdk.layer_bytecode import find_compiler

# Besides Python's own library this is all that is there before the layer comes (boto3 is of no use here).
SHIPPED_BY_LAMBDA = ("awslambdaric", "snapshot-restore-py", "simplejson")


def python_of_lambda(runtime: str, folder: Path) -> Path:
    """Make it in `folder`, with AWS's packages in the versions that we test with; return its program."""
    compiler = find_compiler(runtime.removeprefix("python"))
    assert compiler is not None, f"this machine has no Python for {runtime}"
    subprocess.run([compiler.program, "-m", "venv", "--without-pip", folder], check=True)
    program = folder / "bin" / "python"
    wanted = [f"{name}=={metadata.version(name)}" for name in SHIPPED_BY_LAMBDA]
    command = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet", "--no-input", "--no-deps"]
    subprocess.run([*command, "--no-compile", "--only-binary=:all:", *wanted], check=True)
    return program
