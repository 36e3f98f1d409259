"""The proxy's image: its build context, put together the same way for the CDK and for `docker build` by hand.

The context is the package `emberpool_proxy` beside its Dockerfile and its lock file; the image is built where the
app is deployed, so synthesizing needs no docker.
"""

from __future__ import annotations

import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from emberpool_cdk.source_files import IGNORED, lock_file, package_folder

PACKAGE = "emberpool_proxy"
BESIDE_THE_PACKAGE = ("Dockerfile", ".dockerignore")
# What the package is made of. Anything else beside it, a key, a dump or a test, is nobody's to find in an image.
PACKAGE_FILES = ("*.py", "py.typed")
NOT_OF_THE_PACKAGE = (*IGNORED, "test_*.py", "conftest.py", "tests", ".*")
# The contract with the Dockerfile; tests/agreement holds them together.
CA_FILE = "/etc/emberpool/database-ca.pem"
CONTAINER_USER = "10001"


class ProxyContext:
    """A temporary folder with the build context; use it with `with`, it is removed afterwards.

    Raises SourceMissing when the package or its lock file is not installed.
    """

    def __init__(self) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        self._temporary = tempfile.TemporaryDirectory(prefix="embercdk-image-")
        folder = Path(self._temporary.name)
        write_context(folder)
        return folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def write_context(folder: Path) -> None:
    """Write the build context into an empty or new folder. Raises SourceMissing."""
    source = package_folder(PACKAGE)
    shutil.copytree(source, folder / PACKAGE, ignore=_left_out)
    shutil.copyfile(lock_file("proxy"), folder / "requirements.txt")
    for name in BESIDE_THE_PACKAGE:
        shutil.copyfile(source / name, folder / name)


def _left_out(folder: str, names: list[str]) -> set[str]:
    left_out = shutil.ignore_patterns(*NOT_OF_THE_PACKAGE)(folder, names)
    files = [name for name in names if not (Path(folder) / name).is_dir()]
    return left_out | {name for name in files if not any(fnmatch(name, pattern) for pattern in PACKAGE_FILES)}
