"""What a session sends: steps of one pipeline, which ends with one Sync."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.values import Value

Outcome = list[PGresult]  # of one step: the last has its status, those before it have rows


class Way(IntEnum):
    """How a step goes over the wire."""

    PLAIN = 0
    REPEATED = 1  # prepared by name when the session sees it again: saves PostgreSQL its parse and its plan
    PREPARE = 2  # into the unnamed prepared statement, for ...
    BOUND = 3  # ... the steps after it in the same pipeline


class Step(NamedTuple):
    """One statement with its values, text unless `formats` says otherwise; a caller's own `is_asked`."""

    sql: bytes
    params: Sequence[bytes | None] = ()
    types: tuple[int, ...] = ()
    formats: Sequence[int] | None = None
    way: Way = Way.PLAIN
    is_asked: bool = False


def statement(sql: bytes, values: Sequence[Value], way: Way = Way.PLAIN, with_fallbacks: bool = False) -> Step:
    """Return the step of a caller's statement; `with_fallbacks` types what PostgreSQL could not."""
    if not values:
        return Step(sql, way=way, is_asked=True)
    return Step(
        sql,
        [value.data for value in values],
        types_of(values, with_fallbacks),
        [1 if value.is_binary else 0 for value in values] if any(value.is_binary for value in values) else None,
        way,
        is_asked=True,
    )


def types_of(values: Sequence[Value], with_fallbacks: bool = False) -> tuple[int, ...]:
    """Return the parameters' type OIDs; 0 lets PostgreSQL find one."""
    if with_fallbacks:
        return tuple([value.oid or value.fallback_oid for value in values])
    return tuple([value.oid for value in values])


NOTHING = Step(b"")  # allowed in an aborted transaction, too
BEGIN, BEGIN_READ_ONLY = Step(b"BEGIN"), Step(b"BEGIN READ ONLY")
SNAPSHOT = Step(b"SELECT 1")  # after the first query of a transaction nobody can make it READ WRITE again
COMMIT, ROLLBACK = Step(b"COMMIT"), Step(b"ROLLBACK")
SAVEPOINT = Step(b"SAVEPOINT emberpool_untyped")
RELEASE = Step(b"RELEASE SAVEPOINT emberpool_untyped")
BACK_TO_SAVEPOINT = Step(b"ROLLBACK TO SAVEPOINT emberpool_untyped")
RESTORE_SEARCH_PATH = Step(b"SELECT set_config('search_path', current_setting('emberpool.search_path'), true)")


def search_path(schema: str, is_kept: bool = False) -> Step:
    """Return the step that sets the schema for this transaction; RESTORE_SEARCH_PATH undoes it if `is_kept`."""
    path = b'"' + schema.encode().replace(b'"', b'""') + b'"'
    keep = b"set_config('emberpool.search_path', current_setting('search_path'), true), " if is_kept else b""
    return Step(b"SELECT " + keep + b"set_config('search_path', $1, true)", [path], (25,))


def begin(is_read_only: bool) -> tuple[Step, ...]:
    """Return the steps that open a transaction."""
    return (BEGIN_READ_ONLY, SNAPSHOT) if is_read_only else (BEGIN,)
