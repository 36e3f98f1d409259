"""Packs a built layer: the same content gives the same bytes, whenever, wherever and by whomever it is packed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold
UNIX = 3
READABLE_FILE = 0o100644  # Lambda runs functions as another user than the one who unpacks the layer


def write_zip(folder: Path, archive: Path) -> str:
    """Pack every file of `folder` into `archive` and return its SHA-256 in hex.

    The archive appears only when it is complete. Its bytes depend on the zlib of this Python, too.
    """
    unfinished = archive.with_name(archive.name + ".part")
    with zipfile.ZipFile(unfinished, "w") as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EARLIEST)
            entry.create_system = UNIX
            entry.external_attr = READABLE_FILE << 16
            packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
    unfinished.replace(archive)
    return digest
