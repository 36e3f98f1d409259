"""Which PgBouncer the local stack runs: the one place that decides.

$EMBERPOOL_PGBOUNCER if set, else the machine's own if it is new enough, else one that is built once into the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.errors import PgbouncerUnavailable
from emberpool_local.host.file_lock import exclusive_lock
from emberpool_local.pgbouncer.build import build_pgbouncer, built_pgbouncer, pgbouncer_cache_folder

PGBOUNCER = "EMBERPOOL_PGBOUNCER"
OLDEST_VERSION = (1, 24, 0)  # what the proxy is tested with: its drain and its SCRAM logins differ before
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSTALL_YOURSELF = (
    f"Install PgBouncer {'.'.join(map(str, OLDEST_VERSION[:2]))} or newer yourself and set {PGBOUNCER} to its path"
)


@dataclass(frozen=True)
class PgbouncerProgram:
    """A PgBouncer that runs on this machine, and its version."""

    path: Path
    version: tuple[int, int, int]


def find_pgbouncer(progress: Callable[[str], None] = lambda _: None) -> PgbouncerProgram:
    """Return the PgBouncer to run; the first time it may have to be built (half a minute).

    Raises PgbouncerUnavailable when it is too old, missing where it was said to be, or cannot be built, and
    SystemPackagesMissing when the build needs packages that we may not install.
    """
    if chosen := os.environ.get(PGBOUNCER):
        return _chosen_pgbouncer(Path(chosen).expanduser().absolute())
    if program := _new_enough(_system_pgbouncer()):
        return program
    if program := _new_enough(built_pgbouncer()):
        return program
    return _build_once(progress)


def pgbouncer_version(path: Path) -> tuple[int, int, int] | None:
    """Return the version that the program at `path` says it has; None if it does not run or says none."""
    try:
        asked = subprocess.run([path, "--version"], check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"PgBouncer (\d+)\.(\d+)\.(\d+)", asked.stdout)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _chosen_pgbouncer(path: Path) -> PgbouncerProgram:
    version = pgbouncer_version(path)
    if version is None:
        raise PgbouncerUnavailable(
            f"{PGBOUNCER} is {path}, which is not a PgBouncer that runs",
            f"Set {PGBOUNCER} to the path of PgBouncer {_text(OLDEST_VERSION)} or newer, or unset it",
        )
    if version < OLDEST_VERSION:
        raise PgbouncerUnavailable(
            f"{PGBOUNCER} is {path}, which is PgBouncer {_text(version)}: "
            f"too old, {_text(OLDEST_VERSION)} or newer is needed",
            f"Set {PGBOUNCER} to a newer PgBouncer, or unset it to have one built",
        )
    return PgbouncerProgram(path, version)


def _system_pgbouncer() -> Path | None:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")
    return Path(found) if found else None


def _new_enough(path: Path | None) -> PgbouncerProgram | None:
    version = pgbouncer_version(path) if path else None
    if path is None or version is None or version < OLDEST_VERSION:
        return None
    return PgbouncerProgram(path, version)


def _build_once(progress: Callable[[str], None]) -> PgbouncerProgram:
    lock = pgbouncer_cache_folder() / "build.lock"
    with exclusive_lock(lock, lambda: progress("Waiting for another emberpool that builds PgBouncer")):
        path = built_pgbouncer()
        # Another process may have built it while we waited for the lock.
        if _new_enough(path) is None:
            path = build_pgbouncer(progress, INSTALL_YOURSELF)
    program = _new_enough(path)
    if program is None:
        raise PgbouncerUnavailable(
            f"The PgBouncer that was built, {path}, does not run or is older than {_text(OLDEST_VERSION)}",
            INSTALL_YOURSELF,
        )
    progress(f"PgBouncer {_text(program.version)} is built: {program.path}")
    return program


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
