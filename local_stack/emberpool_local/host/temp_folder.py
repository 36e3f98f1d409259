"""Folders for running servers: below the system's temp folder, removed at the end, swept later if we were killed.

A folder's owner holds the lock of a file in it. The kernel frees the lock with the process, so a folder whose lock can
be taken has lost its owner, and the next one to make a folder removes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emberpool_local.host.file_lock import try_lock
from emberpool_local.host.server_user import can_enter, server_user

PREFIX = "emberpool-"
OWNER_FILE = ".owner"
UNLOCKED_OWNER_FILE = ".owner.new"
# A unix socket's path has at most 107 bytes, of which the servers' own names take up to 30.
LONGEST_PATH_BYTES = 70
# Between mkdir and taking the lock a folder looks as if it had no owner.
SECONDS_TO_TAKE_LOCK = 60.0
REMOVE_TRIES = 5


class TempFolder:
    """A new folder of ours: with TempFolder("postgres") as path. Everybody may enter it, only we may write it."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._descriptor: int | None = None
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The folder; open() made it."""
        if self._path is None:
            raise RuntimeError("the temp folder is not open")
        return self._path

    def open(self) -> Path:
        """Make the folder, and remove those that killed processes left behind."""
        parent = _parent_folder()
        sweep(parent)
        self._path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{self._purpose}-", dir=parent))
        unlocked = self._path / UNLOCKED_OWNER_FILE
        self._descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try_lock(self._descriptor)
        # Not before: whoever sweeps at this moment would find an owner's file that is not locked.
        unlocked.rename(self._path / OWNER_FILE)
        self._path.chmod(0o755)
        return self._path

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        if self._path is not None:
            _remove(self._path)
            self._path = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Path:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(parent: Path) -> None:
    """Remove our folders in `parent` whose owner has ended without removing them."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process sweeps too, or another user's folder
            if folder.lstat().st_uid == os.geteuid() and folder.is_dir() and _is_ownerless(folder):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove `folder`, its owner file last: what cannot be removed now can still be told as ours and swept later.

    A server whose owner was killed may still be writing its last files.
    """
    for _ in range(REMOVE_TRIES):
        rest = [path for path in folder.iterdir() if path.name != OWNER_FILE]
        if not rest:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in rest:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_ownerless(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / OWNER_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Another program's folder may have a name like ours: without our file only an empty one is removed.
        is_old = time.time() - folder.lstat().st_mtime > SECONDS_TO_TAKE_LOCK
        return is_old and all(path.name == UNLOCKED_OWNER_FILE for path in folder.iterdir())
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


def _parent_folder() -> Path:
    """Return $TMPDIR or /tmp; /tmp too when $TMPDIR is too deep for a socket or closed to the servers' user."""
    chosen = Path(tempfile.gettempdir())
    user = server_user()
    too_deep = len(os.fsencode(chosen)) + len(PREFIX) + 20 > LONGEST_PATH_BYTES
    if too_deep or (user is not None and not can_enter(user, chosen)):
        return Path("/tmp")  # noqa: S108 (mkdtemp makes a folder of our own in it)
    return chosen
