"""Compiles the layer's modules with a Python of the function's version: bytecode is read by its own version only.

The Python is looked for on this machine, nothing is downloaded; it runs compileall and nothing else.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYER_ROOT = "/opt/python"  # where Lambda mounts the layer: tracebacks name it
SECONDS_TO_ANSWER = 20.0
LINES_OF_COMPILER_SHOWN = 5
# A pre-release may write another bytecode format than the runtime's; other implementations always do.
IDENTITY = (
    "import json, sys; v = sys.version_info; "
    "print(json.dumps([sys.implementation.cache_tag, v.releaselevel, '.'.join(map(str, v[:3]))]))"
)


class BytecodeFailed(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """A module of the layer does not compile for its Python: the message ends with the compiler's last lines."""


@dataclass(frozen=True)
class Compiler:
    """A Python program on this machine; `version` is its full one, for example 3.13.1."""

    program: Path
    version: str


@functools.cache
def find_compiler(python_version: str) -> Compiler | None:
    """Return a final CPython of a version such as 3.13, or None when this machine has none.

    Looked for in this order: the Python that runs this, pyenv's versions, PATH, what `uv python find` knows.
    """
    for program in _candidates(python_version):
        found = _compiler(program, python_version)
        if found is not None:
            return found
    return None


def compile_modules(folder: Path, compiler: Compiler) -> None:
    """Write the bytecode of every module in `folder`, as it will be found under LAYER_ROOT.

    The same sources and compiler give the same bytes, wherever the folder is. Raises BytecodeFailed.
    """
    command = [str(compiler.program), "-P", "-S", "-s", "-m", "compileall", "-q", "-f"]
    # Unchecked: the zip's timestamps differ from the sources', and Lambda could not write new bytecode.
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", LAYER_ROOT, str(folder)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        shown = "\n".join(said[-LINES_OF_COMPILER_SHOWN:])
        raise BytecodeFailed(f"Python {compiler.version} could not compile the layer's modules. It said:\n{shown}")


def _candidates(python_version: str) -> Iterator[str]:
    name = f"python{python_version}"
    if sys.version_info[:2] == tuple(map(int, python_version.split("."))):
        yield sys.executable
    yield from map(str, _of_pyenv(python_version, name))
    for folder in os.get_exec_path():
        found = shutil.which(name, path=folder)
        if found is not None:
            yield found
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is not None:
        yield from _output([uv, "python", "find", "--offline", "--no-python-downloads", python_version]).split("\n")[:1]


def _of_pyenv(python_version: str, name: str) -> list[Path]:
    """Return pyenv's, newest first: its shims on PATH answer only for the versions that are switched on."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    try:
        return sorted(versions.glob(f"{python_version}.*/bin/{name}"), key=_patch_number, reverse=True)
    except PermissionError:  # somebody else's: PYENV_ROOT outlives su and sudo
        return []


def _patch_number(program: Path) -> int:
    digits = program.parents[1].name.split(".")[-1]
    return int(digits) if digits.isdigit() else -1  # 3.13.0rc1, 3.13t-dev


def _compiler(program: str, python_version: str) -> Compiler | None:
    said = _output([program, "-I", "-S", "-c", IDENTITY])
    if not said:
        return None
    cache_tag, release_level, version = json.loads(said)
    is_wanted = cache_tag == f"cpython-{python_version.replace('.', '')}" and release_level == "final"
    return Compiler(Path(program), version) if is_wanted else None


def _output(command: list[str]) -> str:
    """Return what a program prints, or nothing when it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Return our environment without what is meant for the Python that runs us."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
