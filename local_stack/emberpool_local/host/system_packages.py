"""Debian's and Ubuntu's packages that a build needs: seen with dpkg-query, installed with apt-get where we may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.host.cache import cache_folder
from emberpool_local.host.file_lock import exclusive_lock

# Fresh cloud machines run their own upgrade in the first minutes and hold dpkg's lock meanwhile.
WAIT_FOR_DPKG_LOCK_SECONDS = 300
LAST_LINES = 8


def ensure_packages(packages: Sequence[str], reason: str, progress: Callable[[str], None] = lambda _: None) -> None:
    """Install those of `packages` that are missing; `reason` completes "needed to ...".

    Does so as root or through a sudo that asks for no password. Safe in several processes at once. Raises
    SystemPackagesMissing with the line to run when we may not install or the installation fails.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise _without_apt(packages, reason)
    if not missing_packages(packages):
        return
    if (privilege := _privilege()) is None:
        raise _missing(missing_packages(packages), reason)
    lock = cache_folder() / "system-packages.lock"
    with exclusive_lock(lock, lambda: progress("Waiting for another emberpool that installs packages")):
        if missing := missing_packages(packages):
            progress(f"Installing {', '.join(missing)} (needed to {reason})")
            _install(privilege, missing, reason)


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Return those of `packages` that dpkg does not have installed."""
    return [name for name in packages if not _is_installed(name)]


def install_line(packages: Sequence[str]) -> str:
    """Return the line that a user runs to install `packages`."""
    return f"sudo apt-get update && sudo apt-get install -y {' '.join(packages)}"


def _without_apt(packages: Sequence[str], reason: str) -> SystemPackagesMissing:
    return SystemPackagesMissing(
        f"What Debian calls {', '.join(packages)} is needed to {reason}, and this machine has no apt-get",
        "Install your distribution's packages of the same content, or use a Debian or Ubuntu machine or container",
    )


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}\\n", package]
    answer = subprocess.run(query, check=False, capture_output=True, text=True)
    return "installed" in answer.stdout.split()


def _privilege() -> list[str] | None:
    """Return what to put before a command to run it as root, or None if we may not."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return ["sudo", "-n"] if asked.returncode == 0 else None


def _install(privilege: list[str], packages: list[str], reason: str) -> None:
    install = ["install", "--yes", "--no-install-recommends", *packages]
    # The package lists may be missing (a fresh container) or name versions that are gone: then get new ones.
    if _apt_get(privilege, install).returncode == 0:
        return
    _apt_get(privilege, ["update"])
    second = _apt_get(privilege, install)
    if second.returncode != 0:
        raise _missing(packages, reason, second.stderr or second.stdout)


def _apt_get(privilege: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [
        *privilege,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "LC_ALL=C",
        "apt-get",
        "--quiet",
        f"--option=DPkg::Lock::Timeout={WAIT_FOR_DPKG_LOCK_SECONDS}",
        *arguments,
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _missing(packages: Sequence[str], reason: str, output: str = "") -> SystemPackagesMissing:
    failed = f" apt-get could not install them:\n{_last_lines(output)}" if output else ""
    return SystemPackagesMissing(
        f"System packages are missing that are needed to {reason}: {', '.join(packages)}.{failed}",
        f"Run: {install_line(packages)}",
    )


def _last_lines(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-LAST_LINES:])
