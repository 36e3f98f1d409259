"""The folder of rendered files and sockets: 0700, files 0600, each written whole or not at all."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from emberpool_proxy.errors import RunFolderUnusable

LONGEST_SOCKET_PATH_BYTES = 107  # sockaddr_un on Linux
SOCKET_NAME = "31/.s.PGSQL.65535"  # in the folder of its process


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to the user that PgBouncer runs as (ourselves, unless we are root)."""

    path: Path
    owner: pwd.struct_passwd | None  # None: ourselves

    @classmethod
    def prepare(cls, path: Path, run_as_user: str) -> RunFolder:
        """Make the folder private to PgBouncer's user.

        Raises RunFolderUnusable when it cannot be made, its path is too long for a socket, or the user is unknown.
        """
        if len(str(path / SOCKET_NAME).encode()) > LONGEST_SOCKET_PATH_BYTES:
            raise RunFolderUnusable(
                f"the run folder's path is too long for a unix socket: {path}; choose one of at most "
                f"{LONGEST_SOCKET_PATH_BYTES - len(SOCKET_NAME) - 1} bytes"
            )
        owner = _owner(run_as_user)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            if owner:
                os.chown(path, owner.pw_uid, owner.pw_gid)
        except OSError as error:
            raise RunFolderUnusable(
                f"cannot prepare the run folder {path}: {error.strerror}; mount a writable tmpfs there or set "
                "EMBERPOOL_PROXY_RUN_FOLDER"
            ) from error
        return cls(path, owner)

    @classmethod
    def existing(cls, path: Path, run_as_user: str) -> RunFolder:
        """Return a folder that another process of ours has prepared."""
        return cls(path, _owner(run_as_user))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one file, 0600, by rename, so that a RELOAD never reads half a file.

        Raises RunFolderUnusable when it cannot be written (a full tmpfs, for example).
        """
        data = content.encode() if isinstance(content, str) else content
        target = self.path / name
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")  # 0600 from the start
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            self._give_to_owner(Path(temporary))
            Path(temporary).replace(target)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise RunFolderUnusable(f"cannot write {target}: {error.strerror}") from error
        return target

    def link(self, name: str, to: Path) -> Path:
        """Let a name be a link to another file, in one step: what was there is never missing. Needs no room.

        Raises RunFolderUnusable.
        """
        target, temporary = self.path / name, self.path / f".{name}.link"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(to)
            temporary.replace(target)
        except OSError as error:
            raise RunFolderUnusable(f"cannot write {target}: {error.strerror}") from error
        return target

    def copy_program(self, program: Path) -> Path:
        """Copy a program that PgBouncer's user may not be able to reach (a cache below /root) into the folder."""
        target = self.path / program.name
        try:
            shutil.copyfile(program, target)
            target.chmod(0o700)
            self._give_to_owner(target)
        except OSError as error:
            raise RunFolderUnusable(f"cannot copy {program} to {target}: {error.strerror}") from error
        return target

    def _give_to_owner(self, path: Path) -> None:
        if self.owner:
            os.chown(path, self.owner.pw_uid, self.owner.pw_gid)


def _owner(run_as_user: str) -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(run_as_user)
    except KeyError:
        raise RunFolderUnusable(
            f"PgBouncer refuses to run as root and the user {run_as_user!r} does not exist; "
            "set EMBERPOOL_PROXY_RUN_AS_USER to one that does"
        ) from None
