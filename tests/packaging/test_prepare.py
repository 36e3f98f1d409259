"""`tools/prepare`, which every make target runs first, on machines that lack something."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("bash", "env", "dirname", "id", "touch", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone's files as far as `tools/prepare` reads them, so that ours stays as it is."""
    folder = tmp_path / "clone"
    (folder / "tools").mkdir(parents=True)
    (folder / "requirements").mkdir()
    for name in ("tools/prepare", "pyproject.toml", "package-lock.json", "requirements/dev.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with the basic tools only."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def fake(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def prepare(checkout: Path, programs: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "tools" / "prepare", what],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_clear_error(ran: subprocess.CompletedProcess[str], problem: str, next_step: str) -> None:
    assert ran.returncode != 0
    assert ran.stderr.count("error:") == 1, ran.stderr
    assert problem in ran.stderr
    assert next_step in ran.stderr.partition("next:")[2]


def test_missing_node_is_one_clear_error(checkout: Path, programs: Path) -> None:
    """Without Node.js the targets that need the cdk command say so and what to install."""
    assert_clear_error(prepare(checkout, programs, "node"), "Node.js was not found", "install Node.js")


def test_old_node_is_one_clear_error(checkout: Path, programs: Path) -> None:
    """A Node.js that is too old is named with its version."""
    fake(programs, "node", "echo 18")
    assert_clear_error(prepare(checkout, programs, "node"), "Node.js 18 is too old", "install Node.js")


def test_missing_npm_is_one_clear_error(checkout: Path, programs: Path) -> None:
    """Debian has npm in a package of its own."""
    fake(programs, "node", "echo 22")
    assert_clear_error(prepare(checkout, programs, "node"), "npm was not found", "install npm")


def test_missing_python_is_one_clear_error(checkout: Path, programs: Path) -> None:
    """Without python3 the message names the version that is needed."""
    assert_clear_error(prepare(checkout, programs, "dev"), "python3 was not found", "3.11 or newer")


def test_old_python_is_one_clear_error(checkout: Path, programs: Path) -> None:
    """A Python that is too old is named with its version, and how to choose another."""
    fake(programs, "python3", 'case "$1" in --version) echo "Python 3.9.2";; *) exit 1;; esac')
    assert_clear_error(prepare(checkout, programs, "dev"), "Python 3.9.2 is too old", "PYTHON")


def test_missing_ensurepip_names_the_package(checkout: Path, programs: Path) -> None:
    """On Debian without python3-venv and without root's rights the line to run is printed."""
    script = 'case "$2" in *ensurepip*) exit 1;; *version_info*2*) echo 3.13;; *) exit 0;; esac'
    fake(programs, "python3", script)
    (programs / "id").unlink()
    fake(programs, "id", "echo 1000")
    assert_clear_error(
        prepare(checkout, programs, "dev"),
        "missing system packages: python3.13-venv",
        "sudo apt-get install -y python3.13-venv",
    )
