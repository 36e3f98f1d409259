"""A caller's SQL before it is sent: its parameters, and statements that have an operation of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from emberpool_proxy.data_endpoint.calls import BatchExecuteStatement, ExecuteStatement
from emberpool_proxy.data_endpoint.errors import DataError, bad_request
from emberpool_proxy.data_endpoint.parameters import bind_all
from emberpool_proxy.data_endpoint.sql_text import CompiledSql, compile_sql
from emberpool_proxy.data_endpoint.values import Value

_NO_NAMES: frozenset[str] = frozenset()
_INSTEAD = {
    "BEGIN": "BeginTransaction",
    "START": "BeginTransaction",
    "COMMIT": "CommitTransaction",
    "END": "CommitTransaction",
    "ROLLBACK": "RollbackTransaction",
    "ABORT": "RollbackTransaction",
}
_LISTENING = frozenset({"LISTEN", "UNLISTEN"})
OF_SAVEPOINTS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})  # allowed in an aborted transaction, or undone by ours
FORGETS_PREPARED = frozenset({"DISCARD", "DEALLOCATE"})
_LOOKED_AT = frozenset({*_INSTEAD, *_LISTENING, "PREPARE", "COPY"})
_FROM_CLIENT = re.compile(rb"\b(?:STDIN|STDOUT)\b", re.IGNORECASE)


def prepared_call(call: ExecuteStatement) -> tuple[CompiledSql, Sequence[Value]]:
    """Return the SQL with numbers and the values in their order. Raises DataError."""
    if not call.parameters:
        compiled = compile_sql(call.sql, _NO_NAMES)
        check(compiled)
        return compiled, ()
    compiled = compile_sql(call.sql, frozenset([parameter.name for parameter in call.parameters]))
    check(compiled)
    return compiled, bind_all(compiled.names, call.parameters)


def prepared_batch(call: BatchExecuteStatement) -> tuple[CompiledSql, Sequence[Sequence[Value]]]:
    """Return the SQL and the values of each set; one set without values when there is none. Raises DataError."""
    names = frozenset([parameter.name for given in call.parameter_sets for parameter in given])
    compiled = compile_sql(call.sql, names)
    check(compiled)
    if not call.parameter_sets:
        return compiled, [()]
    return compiled, _typed_nulls([bind_all(compiled.names, given) for given in call.parameter_sets])


def check(compiled: CompiledSql) -> None:
    """Raise DataError for what cannot be run as a statement."""
    words = compiled.words
    if words and words[0] in _LOOKED_AT and (error := _refusal(words, compiled.text)):
        raise error


def _refusal(words: Sequence[str], text: bytes) -> DataError | None:
    first, second = words[0], words[1] if len(words) > 1 else ""
    why = ""
    if second == "PREPARED" or (first == "PREPARE" and second == "TRANSACTION"):
        why = f"{first} {second} is not supported: a transaction ends with CommitTransaction"
    elif first in _LISTENING:
        why = f"{first} is not supported: a notification has nobody to reach"
    elif first == "COPY" and _FROM_CLIENT.search(text):
        why = "COPY from STDIN or to STDOUT is not supported: use BatchExecuteStatement, or SELECT"
    elif first in _INSTEAD and not (first == "ROLLBACK" and "TO" in words[1:3]):
        why = f"{first} is not supported as a statement: use the operation {_INSTEAD[first]}"
    return bad_request(why) if why else None


def _typed_nulls(sets: Sequence[Sequence[Value]]) -> Sequence[Sequence[Value]]:
    """Give NULLs the type that other sets have there: PostgreSQL then parses the statement once for all."""
    if len(sets) == 1:
        return sets
    oids = [next((value.oid for value in column if value.data is not None), 0) for column in zip(*sets, strict=True)]
    return [
        [
            Value(None, oid, fallback_oid=value.fallback_oid) if value.data is None and not value.oid else value
            for value, oid in zip(values, oids, strict=True)
        ]
        for values in sets
    ]
