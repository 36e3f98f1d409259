"""Which PgBouncer is chosen, and what is said when none will do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emberpool_local.errors import PgbouncerUnavailable, SystemPackagesMissing
from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.pgbouncer import build as pgbouncer_build
from emberpool_local.pgbouncer import program as chooser
from emberpool_local.pgbouncer.apt_sources import Mirror
from emberpool_local.pgbouncer.program import (
    OLDEST_VERSION,
    PGBOUNCER,
    PgbouncerProgram,
    find_pgbouncer,
    pgbouncer_version,
)


def fake_pgbouncer(folder: Path, version: str) -> Path:
    """A program that says it is PgBouncer `version`: stands in for a release that is not on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "pgbouncer"
    program.write_text(f"#!/bin/sh\necho 'PgBouncer {version}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache and without a PgBouncer of its own; its only PATH folder is returned."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(pgbouncer_build, "program_cache_folder", lambda: cache)
    monkeypatch.setenv(CACHE_DIR, str(cache))
    monkeypatch.delenv(PGBOUNCER, raising=False)
    path = tmp_path / "bin"
    monkeypatch.setattr(chooser, "SYSTEM_FOLDERS", str(path))
    monkeypatch.setenv("PATH", str(path))
    return path


def test_found_pgbouncer_is_new_enough_and_speaks_tls(pgbouncer_program: PgbouncerProgram) -> None:
    """What is found on this machine is a real PgBouncer 1.24 or newer."""
    assert pgbouncer_program.version >= OLDEST_VERSION
    assert pgbouncer_version(pgbouncer_program.path) == pgbouncer_program.version


def test_program_of_the_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$EMBERPOOL_PGBOUNCER is used even where another is at hand."""
    chosen = fake_pgbouncer(tmp_path, "1.99.3")
    monkeypatch.setenv(PGBOUNCER, str(chosen))
    assert find_pgbouncer() == PgbouncerProgram(chosen, (1, 99, 3))


def test_program_of_the_variable_that_is_too_old_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version that was seen and the one that is needed are named; nothing else is taken silently."""
    monkeypatch.setenv(PGBOUNCER, str(fake_pgbouncer(tmp_path, "1.18.0")))
    with pytest.raises(PgbouncerUnavailable, match=r"PgBouncer 1\.18\.0: too old, 1\.24\.0 or newer") as caught:
        find_pgbouncer()
    assert PGBOUNCER in caught.value.next_step


def test_program_of_the_variable_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is not a PgBouncer is named."""
    monkeypatch.setenv(PGBOUNCER, str(tmp_path / "missing"))
    with pytest.raises(PgbouncerUnavailable, match="missing, which is not a PgBouncer that runs"):
        find_pgbouncer()


def test_machines_own_pgbouncer_is_taken_when_it_is_new_enough(bare_machine: Path) -> None:
    """No build where PATH has a PgBouncer 1.24."""
    program = fake_pgbouncer(bare_machine, "1.24.0")
    assert find_pgbouncer() == PgbouncerProgram(program, (1, 24, 0))


def test_cached_build_is_taken_when_the_machines_own_is_too_old(bare_machine: Path) -> None:
    """Debian 12's PgBouncer 1.18 is passed over for the one that was built before."""
    fake_pgbouncer(bare_machine, "1.18.0")
    built = fake_pgbouncer(pgbouncer_build.pgbouncer_cache_folder(), "1.24.1")
    assert find_pgbouncer() == PgbouncerProgram(built, (1, 24, 1))


def test_cached_build_that_no_longer_runs_is_built_again(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade of the system's libraries the old build is replaced."""
    folder = pgbouncer_build.pgbouncer_cache_folder()
    broken = folder / "pgbouncer"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(chooser, "build_pgbouncer", lambda progress, otherwise: fake_pgbouncer(folder, "1.25.0"))
    said: list[str] = []
    assert find_pgbouncer(said.append) == PgbouncerProgram(broken, (1, 25, 0))
    assert said == [f"PgBouncer 1.25.0 is built: {broken}"]


def test_unknown_distribution_is_told_to_bring_its_own(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where emberpool cannot build, the next step is the variable."""
    monkeypatch.setattr(pgbouncer_build, "read_os_release", lambda: {"ID": "alpine", "PRETTY_NAME": "Alpine Linux"})
    with pytest.raises(PgbouncerUnavailable, match="not on Alpine Linux") as caught:
        find_pgbouncer()
    assert PGBOUNCER in caught.value.next_step
    assert "1.24 or newer" in caught.value.next_step


def test_failed_build_names_its_log_and_leaves_no_program(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that cannot be reached ends in one error with apt's words and the path of the whole log."""
    real_path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if shutil.which("apt-get", path=real_path) is None:
        pytest.fail("this test needs Debian's or Ubuntu's apt-get")
    monkeypatch.setenv("PATH", real_path)
    monkeypatch.setattr(chooser, "SYSTEM_FOLDERS", "")
    monkeypatch.setattr(chooser, "_system_pgbouncer", lambda: None)
    monkeypatch.setattr(pgbouncer_build, "ensure_packages", lambda *_: None)
    # No server listens on port 9 of this machine.
    monkeypatch.setattr(pgbouncer_build, "find_mirrors", lambda _: [Mirror("http://127.0.0.1:9/debian")])
    with pytest.raises(PgbouncerUnavailable, match="could not be built") as caught:
        find_pgbouncer()
    log = Path(caught.value.problem.rpartition("The whole log: ")[2])
    assert "apt-get" in log.read_text()
    assert not (log.parent / "pgbouncer").exists()


def test_missing_build_packages_are_said_before_anything_is_fetched(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not install packages gets the line to run, not a failed build."""

    def refuse(packages: object, reason: str, progress: object) -> None:
        raise SystemPackagesMissing("libevent-dev is missing", "Run: …")

    monkeypatch.setattr(pgbouncer_build, "ensure_packages", refuse)
    monkeypatch.setattr(pgbouncer_build, "read_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    with pytest.raises(SystemPackagesMissing):
        find_pgbouncer()
