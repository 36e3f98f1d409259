"""A Debian source package, fetched through an apt configuration of our own: the system's apt state stays as it is.

The mirror and its key are the machine's own; apt checks the archive's signature as ever, dpkg-source unpacks
with the distribution's security fixes applied.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from emberpool_local.pgbouncer.apt_sources import Mirror
from emberpool_local.pgbouncer.build_log import BuildFailed, BuildLog

# What of the machine's apt configuration counts here: proxies, certificates, timeouts. Its hooks must not run.
KEPT_SETTINGS = ("Acquire::",)


class PrivateApt:
    """apt-get with its lists, cache and sources in a folder of ours."""

    def __init__(self, folder: Path, log: BuildLog) -> None:
        self._folder = folder
        self._log = log
        for name in ("lists/partial", "cache/archives/partial", "etc", "parts"):
            (folder / name).mkdir(parents=True)
        self._configuration = folder / "apt.conf"
        self._configuration.touch(mode=0o600)  # a proxy's address may hold a password
        self._configuration.write_text(self._own_settings() + _machine_settings())

    def get_source(self, package: str, suite: str, component: str, mirror: Mirror) -> Path:
        """Unpack `package` of `suite` and return its folder. Raises BuildFailed."""
        (self._folder / "etc" / "sources.list.d").mkdir(exist_ok=True)
        sources = self._folder / "etc" / "sources.list.d" / "emberpool.sources"
        sources.touch(mode=0o600)  # a mirror's address may hold a password, too
        sources.write_text(_stanza(suite, component, mirror))
        # Without error-on=any a suite that the mirror lacks would be a warning only.
        self._run(["apt-get", "--quiet", "update", "--error-on=any"])
        unpacked = self._folder / f"source-{suite}"
        unpacked.mkdir(exist_ok=True)
        self._run(["apt-get", "--quiet", "source", "--only-source", f"{package}/{suite}"], unpacked)
        folders = [path for path in unpacked.iterdir() if path.is_dir()]
        if len(folders) != 1:
            raise BuildFailed(f"apt-get source unpacked {len(folders)} folders, not one")
        return folders[0]

    def _run(self, command: list[str], folder: Path | None = None) -> None:
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C"}
        self._log.run(command, folder or self._folder, environment)

    def _own_settings(self) -> str:
        folders = {
            "Dir::Etc": self._folder / "etc",
            "Dir::Etc::sourcelist": self._folder / "etc" / "none.list",
            "Dir::Etc::sourceparts": self._folder / "etc" / "sources.list.d",
            "Dir::Etc::parts": self._folder / "parts",
            "Dir::Etc::main": self._folder / "etc" / "none.conf",
            "Dir::Etc::preferences": self._folder / "etc" / "none.pref",
            "Dir::Etc::preferencesparts": self._folder / "parts",
            # Who is trusted, and how the mirror wants to be logged in to, stays the machine's.
            "Dir::Etc::trusted": Path("/etc/apt/trusted.gpg"),
            "Dir::Etc::trustedparts": Path("/etc/apt/trusted.gpg.d"),
            "Dir::Etc::netrc": Path("/etc/apt/auth.conf"),
            "Dir::Etc::netrcparts": Path("/etc/apt/auth.conf.d"),
            "Dir::State::lists": self._folder / "lists",
            "Dir::Cache": self._folder / "cache",
        }
        return "".join(f'{name} "{path}";\n' for name, path in folders.items())


def _machine_settings() -> str:
    dump = subprocess.run(["apt-config", "dump"], check=False, capture_output=True, text=True)
    return "".join(f"{line}\n" for line in dump.stdout.splitlines() if line.startswith(KEPT_SETTINGS))


def _stanza(suite: str, component: str, mirror: Mirror) -> str:
    stanza = f"Types: deb-src\nURIs: {mirror.uri}\nSuites: {suite}\nComponents: {component}\n"
    return stanza + (f"Signed-By: {mirror.signed_by}\n" if mirror.signed_by else "")
