"""The user that the servers run as: PostgreSQL and PgBouncer refuse root, so root steps down to `nobody`."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

UNPRIVILEGED_USER = "nobody"  # exists on every Linux distribution and owns nothing


def server_user() -> str | None:
    """Return the user to step down to when we are root, else None."""
    return UNPRIVILEGED_USER if os.geteuid() == 0 else None


def step_down(user: str) -> list[str]:
    """Return the setpriv options that drop root for `user`, supplementary groups included."""
    entry = pwd.getpwnam(user)
    return [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def can_enter(user: str, folder: Path) -> bool:
    """Say whether `user` may list and enter `folder`; asked of the kernel, as modes do not tell of ACLs and mounts."""
    return _passes_test(user, "-r", folder) and _passes_test(user, "-x", folder)


def can_execute(user: str, program: Path) -> bool:
    """Say whether `user` may execute `program`, all folders above it included."""
    return _passes_test(user, "-x", program)


def give_to(user: str | None, path: Path) -> None:
    """Make `user` the owner of `path`; nothing happens for None."""
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _passes_test(user: str, operator: str, path: Path) -> bool:
    command = ["setpriv", *step_down(user), "--", "test", operator, str(path)]
    return subprocess.run(command, check=False, capture_output=True, cwd="/").returncode == 0
