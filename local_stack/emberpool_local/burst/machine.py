"""Names the machine and the versions that a measurement belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from emberpool_local.burst.results import Machine

CPU_INFO = Path("/proc/cpuinfo")


def this_machine(postgresql: str, pgbouncer: str) -> Machine:
    """Describe this machine; the versions of the servers are the caller's to know."""
    versions = {"PostgreSQL": postgresql, "PgBouncer": pgbouncer, "Python": platform.python_version()}
    versions |= {package: version(package) for package in ("psycopg", "awslambdaric", "emberpool")}
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=_system(),
        versions=versions,
    )


def _cpu() -> str:
    # Arm machines have no "model name" there.
    names = [line.partition(":")[2].strip() for line in _lines(CPU_INFO) if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.system()
    return f"{name}, {platform.machine()}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
