"""Builds the layer's content with pip: locked wheels for another architecture and Python than this machine's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

from emberpool_cdk.layer_bytecode import BytecodeFailed, Compiler, compile_modules, find_compiler
from emberpool_cdk.source_files import IGNORED, content_hash, lock_file, package_folder

PACKAGE = "emberpool"
# Amazon Linux 2023 has glibc 2.34; the arm64 wheels of psycopg-binary need 2.28, which rules out Python 3.11 and older.
RUNTIMES = ("python3.12", "python3.13", "python3.14")
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
# What pip notes about this machine; METADATA stays, psycopg reads its version there, and so do the licences.
INSTALL_RECORDS = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
ONLY_FOR_TYPE_CHECKERS = ("*.pyi", "py.typed")
# psycopg imports these only when its C implementation cannot be imported; without a libpq in Lambda they cannot either.
WITHOUT_THE_C_IMPLEMENTATION = ("psycopg/pq/pq_ctypes.py", "psycopg/pq/_pq_ctypes.py")
BUILD_FORMAT = "2"  # part of the hash: raise it when the same sources shall give another layer
LINES_OF_PIP_SHOWN = 12


class LayerUnsupported(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """There are no wheels for this runtime or architecture: the message lists those that work."""


class LayerBuildFailed(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The layer's packages cannot be installed or compiled: the message ends with pip's or Python's last lines."""


@dataclass(frozen=True)
class LayerBuild:
    """What a layer is made of, in Lambda's words: `architecture` arm64 or x86_64, `runtime` python3.13 or the like.

    `with_powertools` adds Powertools for AWS Lambda, from a lock of its own.

    Raises LayerUnsupported for others, SourceMissing when emberpool is not installed completely.
    """

    architecture: str
    runtime: str
    with_powertools: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in MACHINES:
            raise LayerUnsupported(f"architecture must be one of {', '.join(MACHINES)}, got {self.architecture}")
        if self.runtime not in RUNTIMES:
            raise LayerUnsupported(f"runtime must be one of {', '.join(RUNTIMES)}, got {self.runtime}")

    @property
    def package(self) -> Path:
        """The folder of the package `emberpool`."""
        return package_folder(PACKAGE)

    @property
    def python_version(self) -> str:
        """The runtime's Python, for example 3.13."""
        return self.runtime.removeprefix("python")

    @property
    def compiler(self) -> Compiler | None:
        """The Python on this machine that writes bytecode for the runtime, or None."""
        return find_compiler(self.python_version)

    @property
    def warning(self) -> str | None:
        """What is missing in the layer that this machine builds, what it costs and how to get it; mostly None."""
        if self.compiler is not None:
            return None
        return (
            f"no Python {self.python_version} was found on this machine: the layer for {self.runtime} has no compiled "
            f"bytecode, so its imports take about twice as long at each cold start. Install Python "
            f"{self.python_version} (on PATH, by pyenv or by uv) and build again"
        )

    def content_hash(self) -> str:
        """Return what changes when the layer's content does, known without building it.

        Not with the compiling Python's patch version: its bytecode does the same.
        """
        is_compiled = str(self.compiler is not None)
        terms = (BUILD_FORMAT, self.architecture, self.runtime, is_compiled, self._lock_file().read_text())
        return content_hash(terms, self.package)

    def write(self, output_folder: str) -> None:
        """Write the layer's content. Raises LayerBuildFailed."""
        target = Path(output_folder) / "python"
        self._install(target)
        shutil.copytree(self.package, target / PACKAGE, ignore=shutil.ignore_patterns(*IGNORED))
        _drop_what_no_function_needs(target)
        if self.compiler is not None:
            try:
                compile_modules(target, self.compiler)
            except BytecodeFailed as failure:
                raise LayerBuildFailed(str(failure)) from failure
        _make_readable(target)

    def requirements(self) -> str:
        """Return the lock file with only the lines that hold for the runtime, their markers removed.

        pip evaluates markers for the Python that runs it, which need not be the runtime's.
        """
        environment = {
            "python_version": self.python_version,
            "python_full_version": f"{self.python_version}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "platform_system": "Linux",
            "sys_platform": "linux",
            "platform_machine": MACHINES[self.architecture],
        }
        lock = re.sub(r"\\\n", " ", self._lock_file().read_text())
        lines = (line for line in lock.splitlines() if line.strip() and not line.startswith("#"))
        wanted = []
        for line in lines:
            requirement, *hashes = line.split(" --hash=")
            name, _, marker = requirement.partition(";")
            if not marker.strip() or Marker(marker.strip()).evaluate(environment):
                wanted.append(" ".join([name.strip(), *(f"--hash={each.strip()}" for each in hashes)]))
        return "\n".join(wanted) + "\n"

    def _lock_file(self) -> Path:
        return lock_file("layer-powertools" if self.with_powertools else "layer")

    def _install(self, target: Path) -> None:
        machine = MACHINES[self.architecture]
        platforms = [f"--platform={tag}_{machine}" for tag in PLATFORMS]
        with tempfile.TemporaryDirectory(prefix="embercdk-layer-") as folder:
            lock = Path(folder) / "layer.txt"
            lock.write_text(self.requirements())
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile"]
            command += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
            command += [f"--python-version={self.python_version}", "--implementation=cp", *platforms]
            command += [f"--target={target}", f"--requirement={lock}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shown = "\n".join(done.stderr.strip().splitlines()[-LINES_OF_PIP_SHOWN:])
            raise LayerBuildFailed(
                f"pip could not install the layer's packages for {self.runtime} on {self.architecture} "
                f"(exit code {done.returncode}). Check that this machine reaches its package index, then try "
                f"again. pip said:\n{shown}"
            )


def _drop_what_no_function_needs(target: Path) -> None:
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts for this machine's Python
    records = (f"*.dist-info/{name}" for name in INSTALL_RECORDS)
    for pattern in (*records, *ONLY_FOR_TYPE_CHECKERS, *WITHOUT_THE_C_IMPLEMENTATION):
        for path in list(target.rglob(pattern)):
            path.unlink()


def _make_readable(target: Path) -> None:
    # CDK packs the modes as they are: the builder's umask must not make another layer, or an unreadable one.
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
