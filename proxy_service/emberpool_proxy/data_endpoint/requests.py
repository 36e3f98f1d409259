"""A request's body, read and checked in one pass: what comes out has the shapes and the limits of the service's model.

Owns what can be said of a request by itself. What a value means to PostgreSQL is parameters.py's, what is in the SQL
is sql_text.py's. Each error names the member, what it has and what it may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from emberpool_proxy.data_endpoint import shapes
from emberpool_proxy.data_endpoint.calls import (
    BatchExecuteStatement,
    BeginTransaction,
    Call,
    CommitTransaction,
    ExecuteStatement,
    Parameter,
    Place,
    RollbackTransaction,
)
from emberpool_proxy.data_endpoint.errors import NOT_FOUND, DataError, bad_request
from emberpool_proxy.data_endpoint.fields import WrongError, kind, parameter, shown, unknown
from emberpool_proxy.data_endpoint.shapes import choices, structure

MOST_PARAMETERS = 65_535  # of one statement: PostgreSQL's protocol counts them in 16 bits
MOST_SETS = 10_000  # of a batch: each is a few kilobytes of the task's memory until the answer

_Members = Mapping[str, Any]
_OPTIONS = frozenset(structure("ResultSetOptions").members)
_NOWHERE = Place()


def parse(path: str, body: bytes) -> Call:
    """Return the call that a POST of `body` to `path` is.

    Raises DataError: BadRequestException for a body that is not as the model says, NotFoundException for another path.
    """
    read = _READERS.get(path)
    if read is None:
        raise _no_such_operation(path)
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    else:
        if type(members) is not dict:
            raise bad_request(f"the body must be a JSON object, got {kind(members)}")
        return read(members)
    # Raised here: the parser's error holds the whole body.
    raise bad_request(f"the body is not JSON: {reason}" if body else "the body is empty: a JSON object is needed")


def _execute(members: _Members) -> Call:
    _check_members(members, _EXECUTE)
    sql = _sql(members)
    long_as_text, decimal_as_number = _result_options(members.get("resultSetOptions"))
    return ExecuteStatement(
        sql,
        _place(members),
        _parameters(members.get("parameters"), "parameters"),
        _switch(members, "includeResultMetadata"),
        _switch(members, "continueAfterTimeout"),
        _choice(members, "formatRecordsAs", "RecordsFormatType") == "JSON",
        long_as_text,
        decimal_as_number,
    )


def _batch(members: _Members) -> Call:
    _check_members(members, _BATCH)
    sets = members.get("parameterSets")
    if sets is None:
        sets = ()
    elif type(sets) is not list:
        raise _wrong_type("parameterSets", "a list", sets)
    if len(sets) > MOST_SETS:
        raise bad_request(
            f"parameterSets must have at most {MOST_SETS} sets, got {len(sets)}: send them in several batches, "
            "in one transaction if all of them or none must be there"
        )
    return BatchExecuteStatement(
        _sql(members),
        _place(members),
        tuple(
            _parameters(each, "parameterSets", f"[{index}]") if each else _empty_set(each, index)
            for index, each in enumerate(sets)
        ),
    )


def _begin(members: _Members) -> Call:
    _check_members(members, _BEGIN)
    return BeginTransaction(_place(members))


def _commit(members: _Members) -> Call:
    _check_members(members, _END)
    return CommitTransaction(_transaction_id(members))


def _rollback(members: _Members) -> Call:
    _check_members(members, _END)
    return RollbackTransaction(_transaction_id(members))


def _refuse_execute_sql(_: _Members) -> Call:
    raise bad_request(
        f"{shapes.REFUSED_OPERATION} is not supported, as AWS has withdrawn it: use ExecuteStatement, or "
        "BatchExecuteStatement for one statement with several sets of parameters"
    )


_READERS: Final[Mapping[str, Callable[[_Members], Call]]] = {
    "/Execute": _execute,
    "/BatchExecute": _batch,
    "/BeginTransaction": _begin,
    "/CommitTransaction": _commit,
    "/RollbackTransaction": _rollback,
    shapes.REFUSED_PATH: _refuse_execute_sql,
}
_EXECUTE, _BATCH, _BEGIN, _END = (
    frozenset(structure(f"{operation}Request").members)
    for operation in ("ExecuteStatement", "BatchExecuteStatement", "BeginTransaction", "CommitTransaction")
)


def _check_members(members: _Members, known: frozenset[str]) -> None:
    if not members.keys() <= known:
        raise _unknown_member(members, known)
    # Which database and which login it is says the signature; the ARNs are of the model, so that any client can call.
    for name in ("resourceArn", "secretArn"):
        arn = members.get(name)
        if type(arn) is not str:
            raise _wrong_type(name, "a string", arn)
        if not shapes.SHORTEST_ARN_CHARACTERS <= len(arn) <= shapes.LONGEST_ARN_CHARACTERS:
            raise bad_request(
                f"{name} must have {shapes.SHORTEST_ARN_CHARACTERS} to {shapes.LONGEST_ARN_CHARACTERS} characters, "
                f"got {len(arn)}"
            )


def _sql(members: _Members) -> str:
    sql = members.get("sql")
    if type(sql) is not str:
        raise _wrong_type("sql", "a string", sql)
    if len(sql) > shapes.LONGEST_SQL_CHARACTERS:
        raise bad_request(f"sql must have at most {shapes.LONGEST_SQL_CHARACTERS} characters, got {len(sql)}")
    if "\0" in sql:
        raise _holds_nul("sql")
    return sql


def _place(members: _Members) -> Place:
    database = _name(members, "database", shapes.LONGEST_NAME_CHARACTERS)
    schema = _name(members, "schema", shapes.LONGEST_NAME_CHARACTERS)
    transaction_id = _transaction_id(members) if members.get("transactionId") is not None else ""
    return Place(database, schema, transaction_id) if database or schema or transaction_id else _NOWHERE


def _transaction_id(members: _Members) -> str:
    if members.get("transactionId") is None:
        raise _wrong_type("transactionId", "a string", None)
    transaction_id = _name(members, "transactionId", shapes.LONGEST_TRANSACTION_ID_CHARACTERS)
    if not transaction_id:
        # Not taken for none: a program that has lost its id must not go on outside of its transaction.
        raise bad_request("transactionId is empty: leave it out to run a statement in no transaction")
    return transaction_id


def _name(members: _Members, member: str, longest: int) -> str:
    value = members.get(member)
    if value is None:
        return ""
    if type(value) is not str:
        raise _wrong_type(member, "a string", value)
    if len(value) > longest:
        raise bad_request(f"{member} must have at most {longest} characters, got {len(value)}")
    if "\0" in value:
        raise _holds_nul(member)
    return value


def _switch(members: _Members, member: str) -> bool:
    value = members.get(member)
    if value is None:
        return False
    if type(value) is not bool:
        raise _wrong_type(member, "a boolean", value)
    return value


def _choice(members: _Members, member: str, shape: str, inside: str = "") -> str:
    value = members.get(member)
    if value is None:
        return ""
    allowed = choices(shape)
    if value not in allowed:
        raise bad_request(f"{inside}{member} must be one of {', '.join(allowed)}, got {shown(value)}")
    return str(value)


def _result_options(options: Any) -> tuple[bool, bool]:
    """Return whether longs come as text and decimals as numbers."""
    if options is None:
        return False, False
    if type(options) is not dict:
        raise _wrong_type("resultSetOptions", "an object", options)
    if not options.keys() <= _OPTIONS:
        raise _unknown_member(options, _OPTIONS, "resultSetOptions")
    return (
        _choice(options, "longReturnType", "LongReturnType", "resultSetOptions.") == "STRING",
        _choice(options, "decimalReturnType", "DecimalReturnType", "resultSetOptions.") == "DOUBLE_OR_LONG",
    )


def _empty_set(given: Any, index: int) -> tuple[Parameter, ...]:
    if type(given) is not list:
        raise _wrong_type(f"parameterSets[{index}]", "a list", given)
    return ()


def _parameters(given: Any, member: str, place: str = "") -> tuple[Parameter, ...]:
    if given is None:
        return ()
    if type(given) is not list:
        raise _wrong_type(f"{member}{place}", "a list", given)
    if len(given) > MOST_PARAMETERS:
        raise bad_request(f"{member}{place} must have at most {MOST_PARAMETERS} parameters, got {len(given)}")
    read: dict[str, Parameter] = {}
    try:
        for each in given:
            read_one = parameter(each)
            if read.setdefault(read_one.name, read_one) is not read_one:
                raise bad_request(f"{member}{place}[{len(read)}].name: {shown(read_one.name)} is there twice")
    except WrongError as wrong:
        # Each that was read is in `read`: their number is the position of the one that is wrong.
        raise bad_request(f"{member}{place}[{len(read)}]{wrong}") from None
    return tuple(read.values())


def _unknown_member(given: _Members, known: frozenset[str], where: str = "the request") -> DataError:
    return bad_request(f"{where} has the unknown member {unknown(given, known)}")


def _wrong_type(place: str, needed: str, got: Any) -> DataError:
    return bad_request(f"{place} must be {needed}, got {kind(got)}")


def _holds_nul(place: str) -> DataError:
    return bad_request(f"{place} has a NUL character, which PostgreSQL cannot take")


def _no_such_operation(path: str) -> DataError:
    known = ", ".join(each.path for each in shapes.OPERATIONS)
    return DataError(NOT_FOUND, f"there is no operation at {path[:60]!r}; those of the RDS Data API are {known}")
