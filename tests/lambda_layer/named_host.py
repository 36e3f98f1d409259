"""A host name with several addresses that this system's own resolver finds, for one thread only.

A mount namespace with another /etc/hosts, where the tests run as root. It belongs to a thread of this process and
nothing else holds it, so it is gone with the thread. Elsewhere the resolver's answer is replaced.
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

        if os.geteuid() != 0:
            found = [(socket.AF_INET6 if ":" in each else socket.AF_INET, 0, 0, "", (each, 0)) for each in addresses]
            with mock.patch("emberpool.waiting.socket.getaddrinfo", return_value=found):
                yield call
            return
        hosts = folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {NAME}\n" for address in addresses))
        call(_replace_hosts, hosts)
        yield call


def _replace_hosts(hosts: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace could be made")
    # Children of this thread are in its namespace; nothing of it reaches the others'.
    for command in (["--make-rprivate", "/"], ["--bind", str(hosts), "/etc/hosts"]):
        subprocess.run(["mount", *command], check=True, timeout=10)
