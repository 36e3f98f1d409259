"""A DNS server for the lab's few names: what a database's name is in AWS, with its short time to live.

Answers A queries over UDP from a table that may change at any moment, as RFC 1035 has it. Nothing else: the lab's
addresses are IPv4, and its answers fit into one packet.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

DNS_PORT = 53
TTL_SECONDS = 1  # Aurora's is 5: a second keeps a failover in the lab short, and a stale answer possible
LONGEST_QUESTION_BYTES = 512
HEADER = struct.Struct("!HHHHHH")
QUESTION_END = struct.Struct("!HH")
ANSWER = struct.Struct("!HHHIH")
TYPE_A, CLASS_IN = 1, 1
IS_ANSWER, IS_AUTHORITATIVE, RECURSION_DESIRED = 0x8000, 0x0400, 0x0100
OPERATION_BITS = 0x7800
NO_SUCH_NAME = 3
FIRST_NAME = 0xC000 | HEADER.size  # a pointer to the question's name


@dataclass
class NameService:
    """The names and their addresses; the server is asked at `address`."""

    address: str
    port: int = DNS_PORT
    _addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def lead(self, name: str, *addresses: str) -> None:
        """Let `name` have these addresses from now on; who has asked before knows the old ones for TTL_SECONDS."""
        self._addresses = {**self._addresses, name.lower(): addresses}  # replaced at once: another thread reads it

    @property
    def resolv_conf(self) -> str:
        """The text of /etc/resolv.conf for whoever asks this server."""
        return f"nameserver {self.address}\noptions timeout:1 attempts:2\n"

    def answer(self, packet: bytes) -> bytes | None:
        """Return the answer to a packet, None if it is no question."""
        return answer(packet, self._addresses)


@contextmanager
def open_name_service(address: str, port: int = DNS_PORT) -> Iterator[NameService]:
    """Serve on `address` in a thread of this process. Raises OSError."""
    ours, ending = socket.socketpair()
    with ours, ending, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        service = NameService(address, server.getsockname()[1])
        thread = threading.Thread(target=_serve, args=(server, ending, service), name="lab-names", daemon=True)
        thread.start()
        try:
            yield service
        finally:
            ours.close()
            thread.join()


def _serve(server: socket.socket, ending: socket.socket, service: NameService) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(ending, selectors.EVENT_READ)
        while True:
            if any(key.fileobj is ending for key, _ in selector.select()):
                return
            packet, asker = server.recvfrom(LONGEST_QUESTION_BYTES)
            if answered := service.answer(packet):
                server.sendto(answered, asker)


def answer(packet: bytes, addresses: Mapping[str, tuple[str, ...]]) -> bytes | None:
    """Return the answer to a DNS question, None when the packet is none that has exactly one.

    A name that has no address of the kind asked for gets an empty answer, one that is not in the table "no such name".
    """
    try:
        number, flags, questions, _, _, _ = HEADER.unpack_from(packet)
        name, end = _name_at(packet, HEADER.size)
        kind, name_class = QUESTION_END.unpack_from(packet, end)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & (IS_ANSWER | OPERATION_BITS) or questions != 1:
        return None
    found = addresses.get(name.lower())
    records = [_record(address) for address in found or () if (kind, name_class) == (TYPE_A, CLASS_IN)]
    flags = IS_ANSWER | IS_AUTHORITATIVE | flags & RECURSION_DESIRED | (NO_SUCH_NAME if found is None else 0)
    header = HEADER.pack(number, flags, 1, len(records), 0, 0)
    return header + packet[HEADER.size : end + QUESTION_END.size] + b"".join(records)


def _record(address: str) -> bytes:
    packed = ipaddress.IPv4Address(address).packed
    return ANSWER.pack(FIRST_NAME, TYPE_A, CLASS_IN, TTL_SECONDS, len(packed)) + packed


def _name_at(packet: bytes, at: int) -> tuple[str, int]:
    """Return the name that begins there, and where it ends. A question's name has no pointers."""
    labels = []
    while length := packet[at]:
        labels.append(packet[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), at + 1
