"""A host name with several addresses that this system's own resolver finds, for one thread only.

A mount namespace with another /etc/hosts, where the machine gives one: to root, and not in a chroot or in a container
without CAP_SYS_ADMIN. It belongs to a thread of this process and nothing else holds it, so it is gone with the thread.
Elsewhere the resolver's answer is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

ResultT = TypeVar("ResultT")

CLONE_NEWNS = 0x20000
NAME = "tasks.emberpool.internal"


@contextlib.contextmanager
def named_host(folder: Path, addresses: Sequence[str]) -> Iterator[Callable[..., Any]]:
    """Call functions by what this yields: for them NAME has `addresses`."""
    with ThreadPoolExecutor(1) as thread:

        def call(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
            return thread.submit(function, *arguments).result(60)

        hosts = folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {NAME}\n" for address in addresses))
        if not call(_replaces_hosts, hosts):
            found = [(socket.AF_INET6 if ":" in each else socket.AF_INET, 0, 0, "", (each, 0)) for each in addresses]
            with mock.patch("emberpool.waiting.socket.getaddrinfo", return_value=found):
                yield call
            return
        yield call


def _replaces_hosts(hosts: Path) -> bool:
    """Put the file in place of /etc/hosts for this thread; return whether the machine lets us."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(CLONE_NEWNS):
        return False
    # Children of this thread are in its namespace; nothing of it reaches the others'.
    commands = (["--make-rprivate", "/"], ["--bind", str(hosts), "/etc/hosts"])
    return all(
        subprocess.run(["mount", *command], check=False, capture_output=True, timeout=10).returncode == 0
        for command in commands
    )
