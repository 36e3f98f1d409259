"""The lab's DNS server, asked by a real resolver library's packets and by malformed ones."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_local.lab.name_service import TTL_SECONDS, answer, open_name_service

A, AAAA = 1, 28
NO_ERROR, NO_SUCH_NAME = 0, 3
ADDRESSES = {"database.lab": ("10.77.0.2",), "tasks.lab": ("10.77.1.1", "10.77.1.2"), "empty.lab": ()}


def question(name: str, kind: int = A, number: int = 4711) -> bytes:
    """Return a packet as a resolver sends it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def parsed(packet: bytes) -> tuple[int, list[str], list[int]]:
    """Return the code of an answer, its addresses and their times to live."""
    number, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", packet)
    assert number == 4711
    assert flags & 0x8000
    assert questions == 1
    records = packet[len(packet) - 16 * answers :]
    parts = [struct.unpack("!HHHIH4s", records[at : at + 16]) for at in range(0, len(records), 16)]
    assert all(part[0] == 0xC00C for part in parts)
    return flags & 15, [socket.inet_ntoa(part[5]) for part in parts], [part[3] for part in parts]


def asked(name: str, kind: int = A) -> tuple[int, list[str], list[int]]:
    packet = answer(question(name, kind), ADDRESSES)
    assert packet is not None
    return parsed(packet)


def test_name_has_its_addresses_whatever_its_spelling() -> None:
    """A name is answered with all of its addresses and a short time to live, in upper case too."""
    assert asked("tasks.lab") == (NO_ERROR, ["10.77.1.1", "10.77.1.2"], [TTL_SECONDS] * 2)
    assert asked("DataBase.lab") == (NO_ERROR, ["10.77.0.2"], [TTL_SECONDS])


def test_name_without_such_an_address_is_not_one_that_is_unknown() -> None:
    """Asked for IPv6 or for a name without addresses the answer is empty; another name does not exist."""
    assert asked("database.lab", AAAA) == (NO_ERROR, [], [])
    assert asked("empty.lab") == (NO_ERROR, [], [])
    assert asked("elsewhere.lab") == (NO_SUCH_NAME, [], [])


def test_name_that_is_led_elsewhere_is_answered_so_at_once() -> None:
    """A server that listens gives the new address to the first question after the change."""
    with open_name_service("127.0.0.1", port=0) as service, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for address in ("10.77.0.2", "10.77.0.3"):
            service.lead("database.lab", address)
            client.sendto(question("database.lab"), (service.address, service.port))
            assert parsed(client.recv(512)) == (NO_ERROR, [address], [TTL_SECONDS])


@given(st.binary(max_size=80))
def test_malformed_packet_ends_nothing(packet: bytes) -> None:
    """Whatever is sent, there is an answer or none."""
    answered = answer(packet, ADDRESSES)
    assert answered is None or len(answered) >= 12


@pytest.mark.parametrize("cut", range(len(question("database.lab"))))
def test_question_that_was_cut_off_is_not_answered(cut: int) -> None:
    """A packet that ends too early is no question."""
    assert answer(question("database.lab")[:cut], ADDRESSES) is None
