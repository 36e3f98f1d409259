"""How `emberpool invoke` and `status` find a running `emberpool up`: a file in the cache folder, for its user only.

The one that wrote the file holds its lock, which the kernel frees with the process: a file that can be locked is stale,
whatever ended its writer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from emberpool_local.host.cache import cache_folder
from emberpool_local.host.file_lock import try_lock

FILE_NAME = "up.json"


@dataclass(frozen=True)
class RunningStack:
    """A local stack that runs in another process: its pid, what a handler needs, where its proxy tells its status."""

    pid: int
    environment: Mapping[str, str] = field(repr=False)  # holds a password
    status_url: str = ""


@contextmanager
def announced(environment: Mapping[str, str], status_url: str = "") -> Iterator[Path]:
    """Let others find the stack of this process while the context is open; of several, the last one is found.

    Raises CacheNotWritable.
    """
    path = cache_folder() / FILE_NAME
    content = {"pid": os.getpid(), "environment": dict(environment), "status_url": status_url}
    # A name of its own, locked and filled, then renamed: whoever opens up.json sees all of it.
    new = path.with_name(f"{FILE_NAME}.{os.getpid()}")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try_lock(descriptor)
        os.write(descriptor, json.dumps(content).encode())
        new.rename(path)
        yield path
    finally:
        _remove_if_ours(path, descriptor)
        os.close(descriptor)


def find_running() -> RunningStack | None:
    """Return the stack that `emberpool up` runs, or None; a stale file is removed. Raises CacheNotWritable."""
    path = cache_folder() / FILE_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if try_lock(descriptor):
            _remove_if_ours(path, descriptor)
            return None
        with os.fdopen(os.dup(descriptor)) as file:
            content = json.load(file)
        return RunningStack(content["pid"], content["environment"], content.get("status_url", ""))
    finally:
        os.close(descriptor)


def _remove_if_ours(path: Path, descriptor: int) -> None:
    """Remove the file unless another `emberpool up` has put its own in its place."""
    try:
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            path.unlink()
    except FileNotFoundError:
        return
