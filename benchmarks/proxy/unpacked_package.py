"""A program of a Debian or Ubuntu package that is only unpacked: nothing is installed, no service starts.

For what emberpool is compared with. The package and the libraries that this machine
lacks come through the machine's own apt, whose keys they are checked by, and lie in the cache folder afterwards.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.host.cache import program_cache_folder
from emberpool_local.host.file_lock import exclusive_lock
from emberpool_local.host.system_packages import LAST_LINES, install_line, missing_packages
from emberpool_local.host.temp_folder import TempFolder

OS_RELEASE = Path("/etc/os-release")


@dataclass(frozen=True)
class UnpackedPackage:
    """Where a package's files lie: `folder` stands for the root of the file system."""

    name: str
    folder: Path

    def find(self, pattern: str) -> Path:
        """Return the first file of this pattern, such as `usr/sbin/pgpool`. Raises SystemPackagesMissing."""
        found = sorted(self.folder.glob(pattern))
        if not found:
            raise SystemPackagesMissing(
                f"The package {self.name} of this system has no {pattern}", f"Remove {self.folder} and try again"
            )
        return found[0]

    def environment(self) -> dict[str, str]:
        """Return the variables that its programs find their libraries by."""
        folders = {path.parent for path in self.folder.glob("usr/lib/**/*.so*")}
        return {"LD_LIBRARY_PATH": ":".join(sorted(map(str, folders)))}


def unpacked_package(name: str, reason: str, progress: Callable[[str], None] = lambda _: None) -> UnpackedPackage:
    """Return the package, fetched at the first use; `reason` completes "needed to ...".

    Needs no root. Safe in several processes at once. Raises SystemPackagesMissing with what to do.
    """
    folder = program_cache_folder() / "packages" / _system_name() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder.with_suffix(".lock"), lambda: progress(f"Waiting for another fetch of {name}")):
            if not folder.exists():
                progress(f"Getting the package {name} (needed to {reason})")
                _unpack(name, folder, reason)
    return UnpackedPackage(name, folder)


def _unpack(name: str, folder: Path, reason: str) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _missing(name, reason, "this machine has no apt-get")
    with TempFolder("package") as downloads:
        packages = [name, *_missing_libraries(name)]
        _run(["apt-get", "--quiet", "download", *packages], downloads, name, reason)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for archive in downloads.glob("*.deb"):
            _run(["dpkg-deb", "--extract", str(archive), str(unfinished)], downloads, name, reason)
        unfinished.chmod(0o755)
        # Renamed into place at last: whoever sees the folder sees all of it.
        unfinished.rename(folder)


def _missing_libraries(name: str) -> list[str]:
    """Return the libraries that the package needs, those of its libraries included, and that are not installed."""
    found: dict[str, None] = {}
    ahead = [name]
    while ahead:
        for library in missing_packages(_libraries(ahead.pop())):
            if library not in found:
                found[library] = None
                ahead.append(library)
    return list(found)


def _libraries(package: str) -> list[str]:
    command = ["apt-cache", "depends", "--important", package]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
    # Perl modules are for the package's scripts, which are not what is wanted of it.
    return sorted(set(re.findall(r"Depends: (lib\S+(?<!-perl))$", answer.stdout, re.MULTILINE)))


def _run(command: list[str], folder: Path, name: str, reason: str) -> None:
    ran = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=_environment())
    if ran.returncode:
        lines = "\n".join((ran.stderr or ran.stdout).strip().splitlines()[-LAST_LINES:])
        raise _missing(name, reason, f"{' '.join(command[:3])} failed:\n{lines}")


def _missing(name: str, reason: str, why: str) -> SystemPackagesMissing:
    return SystemPackagesMissing(
        f"The package {name} is needed to {reason}, and it could not be fetched: {why}",
        f"Refresh the package lists (sudo apt-get update) and try again, or run: {install_line([name])}",
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _system_name() -> str:
    """Return the name of this system's release: a home folder may be shared by several."""
    lines = OS_RELEASE.read_text().splitlines() if OS_RELEASE.exists() else []
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    names = (release.get("ID", "linux"), release.get("VERSION_ID", "rolling"))
    return "-".join([*(each.strip('"') for each in names), platform.machine()])
