"""PgBouncer's known security fixes, and which of them a version lacks. Standard library only; asks nobody.

Sources: PgBouncer's changelog (https://www.pgbouncer.org/changelog.html), the CVE records of its project, and the
changelog of Debian's package, which has fixes that its number does not tell. To be looked through at each release of
emberpool: the newest entry is of October 2026.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
DEBIAN_UPDATE = re.compile(r"(?P<upstream>\d+\.\d+\.\d+)-.*\+deb(?P<release>\d+)u(?P<update>\d+)")


@dataclass(frozen=True, slots=True)
class Fix:
    """One hole of PgBouncer: releases from `since` on have it, those from `fixed_in` on do not."""

    cve: str
    since: Version
    fixed_in: Version
    hole: str


@dataclass(frozen=True, slots=True)
class Backport:
    """Fixes that Debian's package of an older `upstream` has from `update` on, as in 1.24.1-1+deb13u2."""

    upstream: Version
    release: int
    update: int
    cves: tuple[str, ...]


EVER = (0, 0, 0)
FIXES: tuple[Fix, ...] = (
    Fix("CVE-2025-2291", EVER, (1, 24, 1), "a password that has expired still logs in through auth_query"),
    Fix("CVE-2025-12819", EVER, (1, 25, 1), "anybody runs SQL as auth_user through search_path"),
    Fix("CVE-2026-6664", EVER, (1, 25, 2), "anybody crashes it with a SCRAM message"),
    Fix("CVE-2026-6665", EVER, (1, 25, 2), "a hostile database overflows its stack in a SCRAM login"),
    Fix("CVE-2026-6666", EVER, (1, 25, 2), "a hostile database crashes it with an error without SQLSTATE"),
    Fix("CVE-2026-6667", EVER, (1, 25, 2), "whoever may look at the console may end clients"),
    Fix("CVE-2026-6668", EVER, (1, 26, 0), "anybody makes it hang with a large packet"),
    Fix("CVE-2026-6669", EVER, (1, 26, 0), "a hostile database makes it hang in a SCRAM login"),
    Fix("CVE-2026-19888", (1, 11, 0), (1, 26, 0), "anybody crashes it with a SCRAM message without a nonce"),
    Fix("CVE-2026-107348", (1, 21, 0), (1, 26, 1), "anybody makes it hang where max_packet_size is above 2 GiB"),
    Fix("CVE-2026-107349", (1, 20, 0), (1, 26, 1), "anybody makes it hang with an empty option"),
    Fix("CVE-2026-107350", (1, 17, 0), (1, 26, 1), "whoever has one password logs in as any user of auth_file"),
)
BACKPORTS: tuple[Backport, ...] = (
    Backport((1, 24, 1), 13, 1, ("CVE-2025-12819",)),
    Backport((1, 24, 1), 13, 2, ("CVE-2026-6664", "CVE-2026-6665", "CVE-2026-6666", "CVE-2026-6667")),
)
NEWEST = ".".join(map(str, max(fix.fixed_in for fix in FIXES)))


def missing_fixes(version: Version, package: str | None = None) -> tuple[Fix, ...]:
    """Return the fixes that PgBouncer `version` lacks; `package` is its version in Debian, if it is Debian's."""
    backported = {cve for backport in BACKPORTS if _has(version, package or "", backport) for cve in backport.cves}
    return tuple(fix for fix in FIXES if fix.since <= version < fix.fixed_in and fix.cve not in backported)


def parse_version(text: str) -> Version | None:
    """Return the first version that a text names, as in `PgBouncer 1.24.1`."""
    found = VERSION.search(text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _has(version: Version, package: str, backport: Backport) -> bool:
    found = DEBIAN_UPDATE.fullmatch(package)
    return (
        found is not None
        # The package may have been replaced on disk since the program was started.
        and version == parse_version(found["upstream"]) == backport.upstream
        and int(found["release"]) == backport.release
        and int(found["update"]) >= backport.update
    )
