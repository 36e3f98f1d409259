"""Ports on the loopback interface: which are free."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 10_240  # well above what services are configured to by habit
PORT_TRIES = 50
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port that nobody listens on now; another process may still take it before you do.

    It lies below the ports that the kernel gives to outgoing connections: while a server restarts, one of its own
    clients could get its port otherwise, or even connect to itself.
    """
    first_ephemeral = int(EPHEMERAL_RANGE.read_text().split()[0])
    if first_ephemeral > LOWEST_PORT:
        for _ in range(PORT_TRIES):
            port = random.randrange(LOWEST_PORT, first_ephemeral)  # noqa: S311 (not a secret)
            if is_free(port):
                return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        given: int = probe.getsockname()[1]
        return given


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on `port` of an address of this machine now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only lingering in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
