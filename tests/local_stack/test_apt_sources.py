"""The mirror is read from the machine's own apt sources, in both of their formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberpool_local.pgbouncer.apt_sources import Mirror, find_mirrors, read_os_release

DEBIAN_12 = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
UBUNTU_24 = {"ID": "ubuntu", "VERSION_CODENAME": "noble", "UBUNTU_CODENAME": "noble"}
MINT = {"ID": "linuxmint", "ID_LIKE": "ubuntu debian", "VERSION_CODENAME": "wilma", "UBUNTU_CODENAME": "noble"}

ONE_LINE = """
# deb http://commented.test/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.test/debian bookworm main contrib # ours
deb-src http://mirror.test/debian bookworm main
deb http://security.test/debian-security bookworm-security main
deb https://vendor.test/repo bookworm stable
"""
DEB822 = """
# Written by the installer.
Types: deb
URIs: http://first.test/ubuntu/ http://second.test/ubuntu/
Suites: noble noble-updates noble-backports
Components: main universe
Signed-By: /usr/share/keyrings/ubuntu.gpg

Enabled: no
Types: deb
URIs: http://disabled.test/ubuntu/
Suites: noble
Components: main

Types: deb
URIs: http://security.test/ubuntu/
Suites: noble-security
Components: main
"""
EMBEDDED_KEY = """Types: deb
URIs: http://keyed.test/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEZ
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.fixture
def apt_folder(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_sources_give_the_mirror_of_the_release(apt_folder: Path) -> None:
    """Comments, CDs, the security archive and vendors' repositories are passed over; the key is kept."""
    (apt_folder / "sources.list").write_text(ONE_LINE)
    assert find_mirrors(DEBIAN_12, apt_folder) == [
        Mirror("http://mirror.test/debian", "/usr/share/keyrings/a.gpg"),
        Mirror("http://mirror.test/debian"),
    ]


@pytest.mark.parametrize("os_release", [UBUNTU_24, MINT])
def test_deb822_sources_give_all_addresses_of_the_release(apt_folder: Path, os_release: dict[str, str]) -> None:
    """Every address of an enabled stanza counts, also for a derivative that uses its parent's archive."""
    (apt_folder / "sources.list.d" / "ubuntu.sources").write_text(DEB822)
    key = "/usr/share/keyrings/ubuntu.gpg"
    assert find_mirrors(os_release, apt_folder) == [
        Mirror("http://first.test/ubuntu/", key),
        Mirror("http://second.test/ubuntu/", key),
    ]


def test_key_that_stands_in_the_sources_is_kept_whole(apt_folder: Path) -> None:
    """A key of many lines is handed on as it is, so that the signature is still checked against it."""
    (apt_folder / "sources.list.d" / "keyed.sources").write_text(EMBEDDED_KEY)
    (mirror,) = find_mirrors(DEBIAN_12, apt_folder)
    assert mirror.uri == "http://keyed.test/debian"
    assert mirror.signed_by.splitlines()[1] == " -----BEGIN PGP PUBLIC KEY BLOCK-----"
    assert mirror.signed_by.endswith("-----END PGP PUBLIC KEY BLOCK-----")


def test_machine_without_sources_has_no_mirror(apt_folder: Path) -> None:
    """No sources: no mirror, and no guess."""
    assert find_mirrors(DEBIAN_12, apt_folder) == []


def test_os_release_is_read_with_its_quotes(tmp_path: Path) -> None:
    """Quoted, unquoted and commented lines of os-release."""
    path = tmp_path / "os-release"
    path.write_text('# comment\nID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n\nVERSION_ID="12"\n')
    assert read_os_release(path) == {
        "ID": "debian",
        "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)",
        "VERSION_ID": "12",
    }
    assert read_os_release(tmp_path / "missing") == {}
