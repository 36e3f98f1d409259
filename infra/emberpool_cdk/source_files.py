"""Finds what the layer and the image are made of: our two packages and their lock files.

Found from this module and from the import system, never from the working directory, so that a checkout and an
installed wheel behave the same. Nothing is imported: psycopg need not be installed where the app is synthesized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
IGNORED = ("__pycache__", "*.pyc", "*.pyo", ".mypy_cache", ".ruff_cache", ".DS_Store")


class SourceMissing(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """A package or a lock file of emberpool is not installed: install `emberpool[cdk]` again."""


def lock_file(name: str) -> Path:
    """Return the lock file `name`.txt: the wheel's copy or the checkout's. Raises SourceMissing."""
    installed = HERE / "lock" / f"{name}.txt"
    checkout = HERE.parent.parent / "requirements" / f"{name}.txt"
    for candidate in (installed, checkout):
        if candidate.is_file():
            return candidate
    raise SourceMissing(
        f"the lock file {name}.txt is neither at {installed} nor at {checkout}; install emberpool again"
    )


def package_folder(package: str) -> Path:
    """Return the folder of a top-level package without importing it. Raises SourceMissing."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceMissing(f"the package {package} is not installed; install emberpool again")
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(folder: Path) -> list[Path]:
    """Return the files of a folder in a fixed order, without caches."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not _is_ignored(path.relative_to(folder)))


def content_hash(parts: Iterable[str], folder: Path) -> str:
    """Return a hash of `parts` and of every file in `folder`: it changes when one of them does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    for path in source_files(folder):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _is_ignored(relative: Path) -> bool:
    return any(Path(part).match(pattern) for part in relative.parts for pattern in IGNORED)
