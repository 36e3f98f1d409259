"""How much of a result may arrive for an answer of a given size."""

from __future__ import annotations

_LONGEST_ESCAPES = 3  # a bytea in the escape format needs so many bytes of its Base64; JSON is longer for all else
_MESSAGES = 64 * 1024  # descriptions of columns, and rows of no columns


def wire_bytes(answer_bytes: int) -> int:
    """Return the bytes from PostgreSQL above which the answer would be too large in any case."""
    return _LONGEST_ESCAPES * answer_bytes + _MESSAGES
