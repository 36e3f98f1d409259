"""What this machine's own apt says of its distribution: the mirror, its signing key, and the release.

Reads both formats of sources (one-line .list and deb822 .sources); writes nothing. So no mirror is named in our code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

APT_FOLDER = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
# Names under which a release goes besides its codename.
ROLLING_SUITES = frozenset({"stable", "testing", "unstable", "sid", "oldstable", "devel"})


@dataclass(frozen=True)
class Mirror:
    """One address of the distribution's archive; `signed_by` as the machine's sources have it, else empty."""

    uri: str
    signed_by: str = ""


@dataclass(frozen=True)
class _Source:
    """One entry of apt's sources."""

    types: tuple[str, ...]
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str


def read_os_release(path: Path = OS_RELEASE) -> dict[str, str]:
    """Return the variables of /etc/os-release; empty if there is none."""
    if not path.exists():
        return {}
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def find_mirrors(os_release: Mapping[str, str], apt_folder: Path = APT_FOLDER) -> list[Mirror]:
    """Return the mirrors that this machine gets its distribution's release from, in the order of its sources.

    The security archive and foreign repositories are left out: they serve other suites.
    """
    codenames = {os_release.get("VERSION_CODENAME", ""), os_release.get("UBUNTU_CODENAME", "")} - {""}
    found: dict[Mirror, None] = {}
    for source in _read_sources(apt_folder):
        if "main" in source.components and set(source.suites) & (codenames | ROLLING_SUITES):
            for uri in source.uris:
                if not uri.startswith("cdrom:"):
                    found[Mirror(uri, source.signed_by)] = None
    return list(found)


def _read_sources(apt_folder: Path) -> Iterator[_Source]:
    parts = apt_folder / "sources.list.d"
    for path in [apt_folder / "sources.list", *sorted(parts.glob("*.list"))]:
        if path.is_file():
            yield from _one_line_sources(path.read_text(errors="replace"))
    for path in sorted(parts.glob("*.sources")):
        yield from _deb822_sources(path.read_text(errors="replace"))


def _one_line_sources(text: str) -> Iterator[_Source]:
    """Read lines such as `deb [arch=amd64 signed-by=/key] URI suite component ...`."""
    line_form = re.compile(r"\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)")
    for line in text.splitlines():
        if found := line_form.match(line):
            kind, options, uri, suite, components = found.groups(default="")
            signed_by = re.search(r"(?:^|\s)signed-by=(\S+)", options)
            yield _Source((kind,), (uri,), (suite,), tuple(components.split()), signed_by[1] if signed_by else "")


def _deb822_sources(text: str) -> Iterator[_Source]:
    """Read stanzas of `Name: value` lines; an indented line goes on with the value, as an embedded key does."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "uris" in fields and fields.get("enabled", "yes").lower() != "no":
            yield _Source(
                types=tuple(fields.get("types", "").split()),
                uris=tuple(fields["uris"].split()),
                suites=tuple(fields.get("suites", "").split()),
                components=tuple(fields.get("components", "").split()),
                signed_by=fields.get("signed-by", ""),
            )
