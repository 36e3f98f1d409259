"""System packages: what is missing is seen, and named in one line to run when we may not install it."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.host import system_packages
from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.host.system_packages import ensure_packages, missing_packages

NO_SUCH_PACKAGE = "emberpool-no-such-package"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder, and so a lock, of the test's own."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))


def test_installed_packages_are_not_missing() -> None:
    """dpkg's own package is there, one of another name is not."""
    assert missing_packages(["dpkg", NO_SUCH_PACKAGE]) == [NO_SUCH_PACKAGE]


def test_nothing_is_run_when_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything installed neither sudo nor apt-get is called."""
    monkeypatch.setattr(system_packages, "_apt_get", None)
    monkeypatch.setattr(system_packages, "_privilege", None)
    ensure_packages(["dpkg"], "test")


def test_without_root_and_sudo_the_line_to_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what is missing, what for, and one line that installs it all."""
    monkeypatch.setattr(system_packages, "_privilege", lambda: None)
    with pytest.raises(SystemPackagesMissing) as caught:
        ensure_packages(["dpkg", NO_SUCH_PACKAGE], "build PgBouncer")
    assert NO_SUCH_PACKAGE in caught.value.problem
    assert "build PgBouncer" in caught.value.problem
    assert caught.value.next_step.endswith(f"sudo apt-get install -y {NO_SUCH_PACKAGE}")
    assert "\n" not in caught.value.next_step


def test_on_a_system_without_apt_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no apt-get the error says what Debian calls what is needed."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemPackagesMissing, match="libevent-dev.*no apt-get"):
        ensure_packages(["libevent-dev"], "build PgBouncer")


def test_apts_own_words_are_given_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed installation is tried again with new package lists, then reported with apt-get's last lines."""
    calls: list[str] = []

    def apt_get(privilege: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(arguments[0])
        return subprocess.CompletedProcess(arguments, 100, "", "E: Unable to locate package")

    monkeypatch.setattr(system_packages, "_privilege", list)
    monkeypatch.setattr(system_packages, "_apt_get", apt_get)
    with pytest.raises(SystemPackagesMissing, match="E: Unable to locate package"):
        ensure_packages([NO_SUCH_PACKAGE], "test")
    assert calls == ["install", "update", "install"]


def test_packages_are_installed_once_by_several_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that need a package at once one installs it, and the other finds it installed."""
    installed: list[str] = []
    inside = threading.Barrier(2)

    def privilege() -> list[str]:
        inside.wait(10)  # both have seen the package missing
        return []

    monkeypatch.setattr(system_packages, "_privilege", privilege)
    monkeypatch.setattr(system_packages, "_is_installed", installed.__contains__)
    monkeypatch.setattr(system_packages, "_install", lambda privilege, packages, reason: installed.extend(packages))
    threads = [threading.Thread(target=ensure_packages, args=(["wanted"], "test")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert installed == ["wanted"]
