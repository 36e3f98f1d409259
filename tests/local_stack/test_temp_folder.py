"""Temp folders are removed at the end, and after a kill by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emberpool_local.host import temp_folder
from emberpool_local.host.file_lock import try_lock
from emberpool_local.host.temp_folder import OWNER_FILE, TempFolder, sweep

MAKER = """
import time
from emberpool_local.host.temp_folder import TempFolder
folder = TempFolder("test")
print(folder.open(), flush=True)
time.sleep(600)
"""


def test_folder_is_removed_at_the_end() -> None:
    """Nothing of the folder is left after the context."""
    with TempFolder("test") as path:
        (path / "sub").mkdir()
        (path / "sub" / "file").touch()
    assert not path.exists()


def test_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_is_kept() -> None:
    """Only a folder whose owner has ended is removed by the next one that makes a folder."""
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    try:
        path = Path(maker.stdout.readline().strip())
        with TempFolder("test"):
            assert path.is_dir()
        maker.kill()
        maker.wait()
        assert path.is_dir(), "a killed process cannot remove its folder"
        with TempFolder("test"):
            assert not path.exists()
    finally:
        maker.kill()
        maker.stdout.close()
        maker.wait()


def test_folder_that_is_being_made_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sweeps just before the owner has its lock leaves the folder alone, and the owner gets the lock."""

    def sweep_then_lock(descriptor: int) -> bool:
        with monkeypatch.context() as others:
            others.setattr(temp_folder, "try_lock", try_lock)
            sweep(Path(f"/proc/self/fd/{descriptor}").readlink().parent.parent)
        return try_lock(descriptor)

    monkeypatch.setattr(temp_folder, "try_lock", sweep_then_lock)
    with TempFolder("test") as path:
        assert path.is_dir()
        monkeypatch.undo()
        sweep(path.parent)
        assert path.is_dir()


def test_folder_without_an_owner_file_is_swept_only_when_it_is_empty_and_old(tmp_path: Path) -> None:
    """A folder that is being made right now is not swept from under its maker, nor is another program's."""
    new, old, foreign = (tmp_path / f"emberpool-test-{name}" for name in ("new", "old", "foreign"))
    for folder in (new, old, foreign):
        folder.mkdir()
    (foreign / "file").touch()
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    sweep(tmp_path)
    assert new.exists()
    assert foreign.exists()
    assert not old.exists()


def test_folder_that_cannot_be_removed_whole_is_swept_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a dying server still writes into keeps the mark by which the next sweep knows it."""
    left = tmp_path / "emberpool-test-left"
    (left / "data").mkdir(parents=True)
    (left / OWNER_FILE).touch()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # as when a file appears after each look
        sweep(tmp_path)
    assert (left / OWNER_FILE).exists()
    sweep(tmp_path)
    assert not left.exists()


def test_folder_is_short_enough_for_a_socket_below_a_deep_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unix socket's path has at most 107 bytes: a deep $TMPDIR is passed over."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with TempFolder("test") as path:
        assert path.parent == Path("/tmp")
