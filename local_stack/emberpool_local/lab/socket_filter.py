"""Packets that a TCP socket of ours never gets: its kernel does not acknowledge them, as if the network had lost them.

A socket filter of Linux; newer kernels let only root have one on TCP. What the socket sends still leaves.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Protocol

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
LOAD_WORD, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x35, 0x06
RANDOM_WORD = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
ALL_OF_IT, NOTHING = 0xFFFFFFFF, 0


class Socket(Protocol):
    """A socket, or what asyncio gives out of one."""

    def setsockopt(self, level: int, option: int, value: bytes | int, /) -> None:
        """As a socket's."""


def lose_packets(of: Socket, share: float = 1.0) -> None:
    """Lose this share of the packets that come to a socket from now on; an earlier share is forgotten. Raises OSError.

    A listening one hands its filter on to the connections that it accepts.
    """
    if share <= 0:
        keep_packets(of)
        return
    program = [(RETURN, 0, 0, NOTHING)]
    if share < 1:
        lost_below = int(share * 0xFFFFFFFF)
        program = [
            (LOAD_WORD, 0, 0, RANDOM_WORD),
            (JUMP_IF_AT_LEAST, 1, 0, lost_below),
            *program,
            (RETURN, 0, 0, ALL_OF_IT),
        ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    of.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer)))


def may_lose_packets() -> bool:
    """Whether the kernel lets this process do that."""
    with socket.socket() as probe:
        try:
            lose_packets(probe)
        except PermissionError:
            return False
    return True


def keep_packets(of: Socket) -> None:
    """Take in what comes to a socket again; the other side sends once more what it got no answer to."""
    try:
        of.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except FileNotFoundError:
        return  # none is attached
