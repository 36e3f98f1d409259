"""A program in docker's place, for how docker is called and for images whose files a test chooses."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emberpool_app.image.docker import Docker
from emberpool_app.image.lock import locked_packages
from emberpool_cdk.source_files import lock_file

DIGEST = "sha256:" + "ab" * 32
SITE = "opt/emberpool/lib/python3.13/site-packages"
DPKG_STATUS = """\
Package: bash
Essential: yes
Status: install ok installed
Architecture: amd64
Source: bash (5.2.37-2)
Version: 5.2.37-2+b10
Description: GNU Bourne Again SHell
 Version: of a description, and no field
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html

Package: pgbouncer
Status: install ok installed
Architecture: amd64
Version: 1.26.1-1

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


@dataclass
class StandIn:
    """Writes down how it is called; an image of it has `size` bytes, its builds and containers `exit_code`."""

    folder: Path

    def make(self, *, size: int = 160_000_000, exit_code: int = 0, files: Mapping[str, str] | None = None) -> Docker:
        program, archive = self.folder / "docker", self.folder / "image.tar"
        write_image(archive, {**good_files(), **(files or {})})
        lines = [
            "#!/bin/sh",
            f'[ "$1" = info ] || printf "%s\\n" "$*" >> {self.calls_path}',
            'case "$*" in',
            f"  *.Size*) echo {size} ;;",
            "  *.Architecture*) echo linux/riscv64 ;;",
            f"  *.Id*) echo {DIGEST} ;;",
            "  *.Created*) echo 2026-11-22T23:05:11.914606891Z ;;",
            "  create*) echo a-container ;;",
            f"  export*) cat {archive} ;;",
            f"  build*|run*) exit {exit_code} ;;",
            "esac",
        ]
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)
        return Docker(str(program))

    @property
    def calls_path(self) -> Path:
        return self.folder / "calls.txt"

    def calls(self, command: str) -> list[str]:
        return [line for line in self.calls_path.read_text().splitlines() if line.startswith(f"{command} ")]


def good_files() -> dict[str, str]:
    """Return the files of an image as it should be, as far as they are looked at."""
    python = locked_packages(lock_file("proxy").read_text())
    return {
        "var/lib/dpkg/status": DPKG_STATUS,
        "usr/lib/os-release": 'ID=debian\nVERSION_ID="13"\n',
        "usr/sbin/pgbouncer": "",
        "opt/emberpool/app/emberpool_proxy/__main__.py": "",
        **{f"{SITE}/{each.name.replace('-', '_')}-{each.version}.dist-info/METADATA": "" for each in python},
    }


def write_image(path: Path, files: Mapping[str, str]) -> None:
    """Write files as `docker export` gives them."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
