"""Builds the layer's content with pip: locked wheels for another architecture and Python than this machine's."""

from __future__ import annotations

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

from emberpool_cdk.source_files import IGNORED, content_hash, lock_file, package_folder

PACKAGE = "emberpool"
# Amazon Linux 2023 has glibc 2.34; the arm64 wheels of psycopg-binary need 2.28, which rules out Python 3.11 and older.
RUNTIMES = ("python3.12", "python3.13", "python3.14")
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
LAYER_ROOT = "/opt/python"
BUILD_FORMAT = "1"  # part of the hash: raise it when the same sources shall give another layer
LINES_OF_PIP_SHOWN = 12


class LayerUnsupported(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """There are no wheels for this runtime or architecture: the message lists those that work."""


class LayerBuildFailed(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """pip could not install the locked packages: the message ends with pip's own last lines."""


@dataclass(frozen=True)
class LayerBuild:
    """What a layer is made of, in Lambda's words: `architecture` arm64 or x86_64, `runtime` python3.13 or the like.

    Raises LayerUnsupported for others, SourceMissing when emberpool is not installed completely.
    """

    architecture: str
    runtime: str

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
    def compiles(self) -> bool:
        """Whether this Python writes bytecode that the runtime accepts."""
        return self.python_version == f"{sys.version_info.major}.{sys.version_info.minor}"

    def content_hash(self) -> str:
        """Return what changes when the layer's content does, known without building it."""
        terms = (BUILD_FORMAT, self.architecture, self.runtime, str(self.compiles), lock_file("layer").read_text())
        return content_hash(terms, self.package)

    def write(self, output_folder: str) -> None:
        """Write the layer's content. Raises LayerBuildFailed."""
        target = Path(output_folder) / "python"
        self._install(target)
        shutil.rmtree(target / "bin", ignore_errors=True)  # scripts for this machine's Python
        shutil.copytree(self.package, target / PACKAGE, ignore=shutil.ignore_patterns(*IGNORED))
        if self.compiles:
            self._compile(target)

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
        lock = re.sub(r"\\\n", " ", lock_file("layer").read_text())
        lines = (line for line in lock.splitlines() if line.strip() and not line.startswith("#"))
        wanted = []
        for line in lines:
            requirement, *hashes = line.split(" --hash=")
            name, _, marker = requirement.partition(";")
            if not marker.strip() or Marker(marker.strip()).evaluate(environment):
                wanted.append(" ".join([name.strip(), *(f"--hash={each.strip()}" for each in hashes)]))
        return "\n".join(wanted) + "\n"

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
                f"(exit code {done.returncode}). Check that this machine reaches its package index, then synthesize "
                f"again. pip said:\n{shown}"
            )

    def _compile(self, target: Path) -> None:
        # Unchecked: the zip's timestamps differ from the sources', and Lambda could not write new ones.
        compileall.compile_dir(
            target,
            quiet=2,
            stripdir=str(target),
            prependdir=LAYER_ROOT,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
