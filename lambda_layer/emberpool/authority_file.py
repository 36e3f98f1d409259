"""The CA's certificate as a file, the only form in which libpq takes it.

Written below /tmp, which Lambda keeps for the environment's life, frozen or not; the name follows from the content.
"""

from __future__ import annotations

import hashlib
import os
import stat


def authority_file(pem: str) -> str:
    """Return the path of a file with `pem`, written if it is not there: the function may clean /tmp at any time.

    Raises OSError when it cannot be written.
    """
    content = pem.encode()
    folder = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (only a file of this user's, checked below, is used)
    # The user in the name: on a machine with several the others' files can neither be trusted nor replaced.
    path = f"{folder}/emberpool-{os.geteuid()}-{hashlib.sha256(content).hexdigest()[:32]}.pem"
    if not _is_there(path, content):
        _write(path, content)
    return path


def _is_there(path: str, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        is_ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return is_ours and stat.S_ISREG(found.st_mode) and os.read(descriptor, len(content) + 1) == content
    finally:
        os.close(descriptor)


def _write(path: str, content: bytes) -> None:
    # By rename: another process of this environment may open the file at the same time.
    temporary = f"{path}.{os.urandom(8).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105 (pathlib's import is not worth a rename)
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108 (as above)
        raise
