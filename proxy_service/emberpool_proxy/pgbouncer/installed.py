"""Which PgBouncer runs here: its own number, the Debian package that it came in, and the fixes that it lacks.

Debian mends a version without changing the number that the program tells; only dpkg's records have the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emberpool_proxy.pgbouncer.known_fixes import NEWEST, Fix, missing_fixes, parse_version

DPKG = Path("/var/lib/dpkg")
PACKAGE = "pgbouncer"
RUNBOOK_SECTION = 'docs/runbook.md, "PgBouncer outdated"'


@dataclass(frozen=True, slots=True)
class InstalledPgbouncer:
    """The PgBouncer that runs. `package` is None when no Debian package has it."""

    version: str
    package: str | None
    missing: tuple[Fix, ...]

    @classmethod
    def of(cls, told: str, program: Path | None, dpkg: Path = DPKG) -> InstalledPgbouncer | None:
        """Return what `program`, which told a line as of SHOW VERSION, is; None when the line names no version."""
        number = parse_version(told)
        if number is None:
            return None
        package = package_version(program, dpkg) if program else None
        if package and parse_version(package) != number:
            package = None  # replaced on disk since it was started
        return cls(".".join(map(str, number)), package, missing_fixes(number, package))

    @property
    def warning(self) -> str | None:
        """What is wrong with it and what to do, or None."""
        if not self.missing:
            return None
        cves = ", ".join(fix.cve for fix in self.missing)
        return (
            f"PgBouncer {self.package or self.version} lacks the fixes of {cves}: deploy an image with {NEWEST} or "
            f"newer, or with a package that has them ({RUNBOOK_SECTION})"
        )

    def document(self) -> dict[str, Any]:
        """Return it as /status shows it."""
        return {
            "version": self.version,
            "package": self.package,
            "missing_fixes": [{"cve": fix.cve, "hole": fix.hole} for fix in self.missing],
            "warning": self.warning,
        }


def package_version(program: Path, dpkg: Path = DPKG) -> str | None:
    """Return the version of the Debian package that `program` is a file of, or None: built here, or no Debian."""
    try:
        files = (dpkg / "info" / f"{PACKAGE}.list").read_text().splitlines()
        status = (dpkg / "status").read_text()
    except OSError:
        return None
    if str(program) not in files:
        return None
    for paragraph in status.split("\n\n"):
        lines = paragraph.strip().splitlines()
        if f"Package: {PACKAGE}" in lines:
            return next((line.removeprefix("Version: ") for line in lines if line.startswith("Version: ")), None)
    return None
