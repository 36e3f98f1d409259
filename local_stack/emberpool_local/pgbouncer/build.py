"""Builds PgBouncer once from the distribution's own source package into the cache folder.

Debian 12 and Ubuntu 24.04 have older ones, and a newer release's binary package would upgrade their C library.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from emberpool_local.errors import PgbouncerUnavailable
from emberpool_local.host.cache import program_cache_folder
from emberpool_local.host.system_packages import ensure_packages
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.apt_sources import find_mirrors, read_os_release
from emberpool_local.pgbouncer.build_log import BuildFailed, BuildLog
from emberpool_local.pgbouncer.source_package import PrivateApt

# gcc, libc6-dev and make are what of build-essential a C program needs; dpkg-dev unpacks and patches the source.
BUILD_PACKAGES = (
    "gcc",
    "libc6-dev",
    "make",
    "pkg-config",
    "dpkg-dev",
    "libevent-dev",
    "libc-ares-dev",
    "libssl-dev",
)
# Releases whose PgBouncer is 1.24 or newer, and the component that it is in; tried in this order.
SUITES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "debian": (("trixie", "main"),),
    "ubuntu": (("resolute", "universe"), ("questing", "universe"), ("plucky", "universe")),
}


def pgbouncer_cache_folder() -> Path:
    """Return the folder of the build for this machine's distribution: a home folder may be shared by several."""
    release = read_os_release()
    name = f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', 'rolling')}-{platform.machine()}"
    folder = program_cache_folder() / "pgbouncer" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built_pgbouncer() -> Path | None:
    """Return the PgBouncer that was built before, if there is one."""
    path = pgbouncer_cache_folder() / "pgbouncer"
    return path if path.exists() else None


def build_pgbouncer(progress: Callable[[str], None], otherwise: str) -> Path:
    """Build PgBouncer and return its path; `otherwise` is the next step when that is not possible here.

    Raises PgbouncerUnavailable, naming the log of the build, and SystemPackagesMissing.
    """
    suites = _suites(read_os_release(), otherwise)
    ensure_packages(BUILD_PACKAGES, "build PgBouncer", progress)
    target = pgbouncer_cache_folder() / "pgbouncer"
    log = BuildLog(target.with_name("build.log"))
    try:
        with TempFolder("build") as work:
            source = _source(work, suites, log, progress)
            progress("Building PgBouncer (half a minute, only this once)")
            log.run(["./configure", "--with-cares", "--without-pam"], source)
            log.run(["make", f"-j{os.cpu_count() or 1}", "pgbouncer"], source)
            # Renamed into place at last: whoever sees the file sees all of it.
            unfinished = target.with_suffix(".unfinished")
            shutil.copy2(source / "pgbouncer", unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(target)
    except BuildFailed as error:
        raise PgbouncerUnavailable(
            f"PgBouncer could not be built. {error}\nThe whole log: {log.path}", otherwise
        ) from error
    return target


def _suites(os_release: Mapping[str, str], otherwise: str) -> tuple[tuple[str, str], ...]:
    names = [os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()]
    for name in names:
        if name in SUITES:
            return SUITES[name]
    system = os_release.get("PRETTY_NAME") or "this system"
    raise PgbouncerUnavailable(
        f"PgBouncer is missing or too old, and emberpool can build it on Debian and Ubuntu only, not on {system}",
        otherwise,
    )


def _source(work: Path, suites: tuple[tuple[str, str], ...], log: BuildLog, progress: Callable[[str], None]) -> Path:
    """Return the unpacked source of the first suite that one of the machine's mirrors has."""
    mirrors = find_mirrors(read_os_release())
    if not mirrors:
        raise BuildFailed("This machine's apt sources name no mirror of its distribution")
    failures = []
    apt = PrivateApt(work / "apt", log)
    for suite, component in suites:
        for mirror in mirrors:
            progress(f"Getting PgBouncer's source from the release {suite}")
            try:
                return apt.get_source("pgbouncer", suite, component, mirror)
            except BuildFailed as error:
                failures.append(f"{suite}: {error}")
    raise BuildFailed("No mirror of this machine has its source:\n" + "\n".join(failures))
