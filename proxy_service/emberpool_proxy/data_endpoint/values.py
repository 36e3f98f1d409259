"""A parameter's value as PostgreSQL takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """`data` is text, or binary when `is_binary`; None is NULL.

    `oid` 0 lets PostgreSQL find the type, as for a literal in quotes. Where it cannot (42P18 and its like) the
    statement is tried again with `fallback_oid`.
    """

    data: bytes | None
    oid: int = 0
    is_binary: bool = False
    fallback_oid: int = 0
