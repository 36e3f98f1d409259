"""What a caller may ask for: the operations of the service's model, as parsed and checked by requests.parse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """Who signed: a client user of the pool, with the entry of [databases] that it may use. `name` is the user's."""

    name: str
    entry: str
    password: str = field(repr=False, default="")  # of the login at PgBouncer
    is_read_only: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One SqlParameter as it came, shapes checked: `value` is a Field (exactly one member), None when there is none."""

    name: str
    value: Mapping[str, Any] | None
    type_hint: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a statement runs. Empty: the caller's entry, the role's search_path, no transaction."""

    database: str = ""
    schema: str = ""
    transaction_id: str = ""


@dataclass(frozen=True, slots=True)
class ExecuteStatement:
    """`long_as_text` and `decimal_as_number` are resultSetOptions; `as_json` is formatRecordsAs."""

    sql: str
    place: Place = Place()
    parameters: Sequence[Parameter] = ()
    includes_metadata: bool = False
    continues_after_timeout: bool = False
    as_json: bool = False
    long_as_text: bool = False
    decimal_as_number: bool = False


@dataclass(frozen=True, slots=True)
class BatchExecuteStatement:
    """One statement with several sets of parameters, all or nothing."""

    sql: str
    place: Place = Place()
    parameter_sets: Sequence[Sequence[Parameter]] = ()


@dataclass(frozen=True, slots=True)
class BeginTransaction:
    """A lease of one server connection."""

    place: Place = Place()


@dataclass(frozen=True, slots=True)
class CommitTransaction:
    """The end of a lease."""

    transaction_id: str


@dataclass(frozen=True, slots=True)
class RollbackTransaction:
    """The other end of a lease."""

    transaction_id: str


Call = ExecuteStatement | BatchExecuteStatement | BeginTransaction | CommitTransaction | RollbackTransaction
