"""A PgBouncer that lacks a known security fix is noticed, by its own number and by Debian's, and told everywhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.engines import Engine
from emberpool_proxy.agent.version_check import VersionCheck
from emberpool_proxy.health import Health
from emberpool_proxy.pgbouncer import known_fixes
from emberpool_proxy.pgbouncer.installed import InstalledPgbouncer, package_version
from emberpool_proxy.pgbouncer.known_fixes import BACKPORTS, FIXES, NEWEST, missing_fixes, parse_version
from emberpool_proxy.telemetry.status_view import Look, text_of, view

from .bare_pgbouncer import DATABASE, bare_pgbouncer, served
from .observed import observed, some_settings

OPEN_IN_TRIXIE = {
    *("CVE-2026-6668", "CVE-2026-6669", "CVE-2026-19888"),
    *("CVE-2026-107348", "CVE-2026-107349", "CVE-2026-107350"),
}


def _missing(version: str, package: str | None = None) -> set[str]:
    number = parse_version(version)
    assert number is not None
    return {fix.cve for fix in missing_fixes(number, package)}


def _dpkg(folder: Path, version: str, program: str = "/usr/sbin/pgbouncer") -> Path:
    """Write dpkg's records of a system with PgBouncer between two other packages."""
    (folder / "info").mkdir()
    (folder / "info" / "pgbouncer.list").write_text(f"/.\n/usr\n{program}\n")
    packages = [("pgbouncer-doc", "9"), ("pgbouncer", version), ("zlib1g", "1:1.3")]
    status = [f"Package: {name}\nStatus: install ok installed\nVersion: {number}\n" for name, number in packages]
    (folder / "status").write_text("\n".join(status))
    return folder


def test_newest_release_lacks_nothing() -> None:
    """The release that the table calls the newest has every fix, and so has each one after it."""
    assert not _missing(f"PgBouncer {NEWEST}")
    assert not _missing("PgBouncer 2.0.0")


def test_each_release_lacks_what_was_mended_after_it() -> None:
    """The last release of each line lacks the later ones' fixes and not its own."""
    assert _missing("PgBouncer 1.26.0") == {"CVE-2026-107348", "CVE-2026-107349", "CVE-2026-107350"}
    assert _missing("PgBouncer 1.25.2") == OPEN_IN_TRIXIE
    assert "CVE-2025-2291" in _missing("1.24.0")
    assert "CVE-2025-2291" not in _missing("1.24.1")


def test_hole_that_came_with_a_release_is_none_of_an_older_one() -> None:
    """A version from before the mistake does not lack its fix."""
    assert "CVE-2026-107350" not in _missing("1.16.1")
    assert "CVE-2026-107350" in _missing("1.17.0")


def test_debians_package_has_what_its_number_does_not_tell() -> None:
    """Each update of the package adds its fixes; what nobody has backported stays open."""
    plain, first, second = (
        _missing("1.24.1", package) for package in ("1.24.1-1", "1.24.1-1+deb13u1", "1.24.1-1+deb13u2")
    )
    assert plain - first == {"CVE-2025-12819"}
    assert first - second == {"CVE-2026-6664", "CVE-2026-6665", "CVE-2026-6666", "CVE-2026-6667"}
    assert second == OPEN_IN_TRIXIE
    assert _missing("1.24.1", "1.24.1-1+deb13u10") == second


@pytest.mark.parametrize("package", ["1.24.1-1+deb12u2", "1.24.1-1ubuntu2", "1.25.1-1+deb13u2", "", "nonsense"])
def test_other_packages_mend_nothing(package: str) -> None:
    """Another release's update, another version's or another distribution's is not taken for Debian 13's."""
    assert _missing("1.24.1", package) == _missing("1.24.1")


def test_table_is_consistent() -> None:
    """Each hole is named once, is mended after it came, and every backport is of one that the table has."""
    assert len({fix.cve for fix in FIXES}) == len(FIXES)
    assert all(fix.since < fix.fixed_in for fix in FIXES)
    assert {cve for backport in BACKPORTS for cve in backport.cves} <= {fix.cve for fix in FIXES}


def test_package_is_known_by_the_file_that_runs(tmp_path: Path) -> None:
    """dpkg's version counts for the program that dpkg put there, and not for one that was built beside it."""
    dpkg = _dpkg(tmp_path, "1.24.1-1+deb13u2")
    assert package_version(Path("/usr/sbin/pgbouncer"), dpkg) == "1.24.1-1+deb13u2"
    assert package_version(Path("/usr/local/sbin/pgbouncer"), dpkg) is None
    assert package_version(Path("/usr/sbin/pgbouncer"), tmp_path / "no-debian") is None


def test_package_that_was_replaced_under_a_running_program_does_not_count(tmp_path: Path) -> None:
    """The version on disk may be newer than the one in memory: what runs decides."""
    dpkg = _dpkg(tmp_path, f"{NEWEST}-1")
    installed = InstalledPgbouncer.of("PgBouncer 1.24.1", Path("/usr/sbin/pgbouncer"), dpkg)
    assert installed is not None
    assert installed.package is None
    assert installed.missing


def test_line_without_a_version_tells_nothing() -> None:
    """A PgBouncer that does not say what it is makes no alarm and no all-clear."""
    assert InstalledPgbouncer.of("PgBouncer, of course", program=None) is None


async def test_running_pgbouncer_is_judged_by_its_console(
    postgres: EmbeddedPostgres,
    pgbouncer_program: PgbouncerProgram,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fix that the running one lacks is one warning in the log, however often it is asked; without any, none."""
    monkeypatch.setattr(logging.getLogger("emberpool_proxy"), "propagate", True)
    newer = known_fixes.Fix("CVE-2099-1", (0, 0, 0), (99, 0, 0), "a hole of tomorrow")
    for fixes, warnings in (((newer,), 1), ((), 0)):
        monkeypatch.setattr(known_fixes, "FIXES", fixes)
        health = Health()
        check = VersionCheck(some_settings(pgbouncer_path=str(pgbouncer_program.path)), health)
        caplog.clear()
        with bare_pgbouncer(pgbouncer_program, {DATABASE: served(postgres)}) as bare:
            console = await bare.console()
            for _ in range(2):
                await check.look(Engine(0, bare.folder, console=console))
            await console.close()
        assert health.pgbouncer is not None
        assert health.pgbouncer.version == ".".join(map(str, pgbouncer_program.version))
        # One record, however many handlers other tests have left at the logger.
        records = list(dict.fromkeys(caplog.records))
        found = [record.getMessage() for record in records if "lacks the fixes of" in record.getMessage()]
        assert len(found) == warnings
        assert all("CVE-2099-1" in line and "deploy" in line for line in found)


async def test_missing_fix_is_told_everywhere_and_takes_nothing_away() -> None:
    """/healthz stays 200 and warns, /status and its words name version and holes, the metric is 1; else it is 0."""
    async with observed() as seen:
        seen.health.pgbouncer = InstalledPgbouncer.of("PgBouncer 1.25.2", program=None)
        status, body = await seen.get("/healthz")
        assert status == 200
        (warning,) = json.loads(body)["warnings"]
        assert set(warning.replace(",", "").replace(":", "").split()) >= OPEN_IN_TRIXIE
        assert NEWEST in warning
        shown = json.loads((await seen.get("/status"))[1])
        assert {fix["cve"] for fix in shown["pgbouncer"]["missing_fixes"]} == OPEN_IN_TRIXIE
        text = text_of(view(Look(shown, 0)))
        assert "1.25.2" in text
        assert warning in text
        assert "emberpool_pgbouncer_outdated 1.0" in (await seen.get("/metrics"))[1]
        seen.health.pgbouncer = InstalledPgbouncer.of(f"PgBouncer {NEWEST}", program=None)
        assert json.loads((await seen.get("/healthz"))[1])["warnings"] == []
        assert "emberpool_pgbouncer_outdated 0.0" in (await seen.get("/metrics"))[1]
