"""Where emberpool keeps what it builds once: the cache folders.

Owns the choice of folder and the check that it can be written; what lies inside belongs to the modules that put
it there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from emberpool_local.errors import CacheNotWritable
from emberpool_local.host.server_user import can_enter, server_user

CACHE_DIR = "EMBERPOOL_CACHE_DIR"
SYSTEM_CACHE_FOLDER = Path("/var/cache/emberpool")


def cache_folder() -> Path:
    """Return the user's cache folder, made if needed.

    $EMBERPOOL_CACHE_DIR, else $XDG_CACHE_HOME/emberpool, else ~/.cache/emberpool. Raises CacheNotWritable.
    """
    return _writable(_chosen_folder())


def program_cache_folder() -> Path:
    """Return the cache folder for programs, which the user that runs the servers must be able to enter.

    It is the cache folder itself, except for root with a cache below a closed home folder: /var/cache/emberpool then.
    Raises CacheNotWritable.
    """
    folder = cache_folder()
    user = server_user()
    if user is None or can_enter(user, folder):
        return folder
    return _writable(SYSTEM_CACHE_FOLDER)


def _chosen_folder() -> Path:
    if explicit := os.environ.get(CACHE_DIR):
        return Path(explicit).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "emberpool"
    return Path("~/.cache/emberpool").expanduser()


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        raise CacheNotWritable(
            f"The cache folder {folder} cannot be written: {error}",
            f"Set {CACHE_DIR} to a folder that you can write, for example: export {CACHE_DIR}=/var/tmp/emberpool",
        ) from error
    return folder
