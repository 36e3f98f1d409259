"""The zip that is written here byte by byte is one that others read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from layer_zip import write_zip

CONTENTS = {
    "python/empty.py": b"",
    "python/one.py": b"print(1)",
    "python/folder/much.py": b"import this\n" * 100_000,
    "python/folder/dense.so": os.urandom(70_000),
    "python/\u00e4.py": "\u00e4".encode(),
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        path = tmp_path / "content" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_zip(tmp_path / "content", tmp_path / "layer.zip")
    return tmp_path / "layer.zip"


def test_every_file_comes_out_as_it_went_in(archive: Path) -> None:
    """Empty, small, large and incompressible files, and names beyond ASCII, are what zipfile unpacks; CRCs match."""
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == CONTENTS
        assert packed.namelist() == sorted(CONTENTS)
        dense = packed.getinfo("python/folder/dense.so")
    assert dense.compress_type == zipfile.ZIP_STORED
    assert archive.stat().st_size < 75_000


def test_python_imports_from_it(archive: Path) -> None:
    """Python's own importer, which reads zips by itself, finds a module inside."""
    command = [sys.executable, "-c", "import one"]
    environment = {**os.environ, "PYTHONPATH": f"{archive}/python"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


def test_unfinished_zip_is_never_taken_for_one(tmp_path: Path, archive: Path) -> None:
    """A folder that cannot be read leaves the zip of before."""
    before = archive.read_bytes()
    shutil.rmtree(tmp_path / "content")
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "gone.py").symlink_to(tmp_path / "content")
    (tmp_path / "content" / "unreadable").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="error"):
        write_zip(tmp_path / "content", archive)
    assert archive.read_bytes() == before
