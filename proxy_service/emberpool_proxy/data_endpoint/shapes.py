"""The service's model as tables: every shape of a request and of an answer, with its limits.

Owns what is common to requests.py, which reads by it, and openapi.py, which describes it. A test compares it with the
model that botocore ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emberpool_proxy.data_endpoint import errors

LONGEST_SQL_CHARACTERS = 65_536
LONGEST_NAME_CHARACTERS = 64  # of a database or schema
LONGEST_TRANSACTION_ID_CHARACTERS = 192
SHORTEST_ARN_CHARACTERS, LONGEST_ARN_CHARACTERS = 11, 570
SMALLEST_LONG, LARGEST_LONG = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Text:
    """A string of so many characters, or one of `values`."""

    shortest: int = 0
    longest: int | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plain:
    """A value without limits of its own: `kind` is boolean, integer, long, double or blob, as in the model."""

    kind: str


@dataclass(frozen=True)
class Listed:
    """A list of what `of` names; a sparse one may hold nulls."""

    of: str
    is_sparse: bool = False


@dataclass(frozen=True)
class Structure:
    """Members by name, each with the name of its shape. A union has exactly one of them."""

    members: Mapping[str, str]
    required: tuple[str, ...] = ()
    is_union: bool = False


Shape = Text | Plain | Listed | Structure


@dataclass(frozen=True)
class Operation:
    """One path that takes POST. `own_errors` are those that only some operations have."""

    name: str
    path: str
    request: str
    response: str
    summary: str
    own_errors: tuple[str, ...] = field(default=())


_TO_CALL = {"resourceArn": "Arn", "secretArn": "Arn"}
_PLACE = {"database": "DbName", "schema": "DbName"}
_IN_TRANSACTION = {"transactionId": "Id"}
_ANY_CALL = ("resourceArn", "secretArn")

SHAPES: Mapping[str, Shape] = {
    "Arn": Text(SHORTEST_ARN_CHARACTERS, LONGEST_ARN_CHARACTERS),
    "DbName": Text(longest=LONGEST_NAME_CHARACTERS),
    "Id": Text(longest=LONGEST_TRANSACTION_ID_CHARACTERS),
    "SqlStatement": Text(longest=LONGEST_SQL_CHARACTERS),
    "ParameterName": Text(),
    "String": Text(),
    "FormattedSqlRecords": Text(),
    "TransactionStatus": Text(longest=128),
    "TypeHint": Text(values=("JSON", "UUID", "TIMESTAMP", "DATE", "TIME", "DECIMAL")),
    "DecimalReturnType": Text(values=("STRING", "DOUBLE_OR_LONG")),
    "LongReturnType": Text(values=("STRING", "LONG")),
    "RecordsFormatType": Text(values=("NONE", "JSON")),
    "Boolean": Plain("boolean"),
    "BoxedBoolean": Plain("boolean"),
    "BoxedLong": Plain("long"),
    "BoxedDouble": Plain("double"),
    "Integer": Plain("integer"),
    "RecordsUpdated": Plain("long"),
    "Blob": Plain("blob"),
    "BooleanArray": Listed("BoxedBoolean", is_sparse=True),
    "LongArray": Listed("BoxedLong", is_sparse=True),
    "DoubleArray": Listed("BoxedDouble", is_sparse=True),
    "StringArray": Listed("String", is_sparse=True),
    "ArrayOfArray": Listed("ArrayValue", is_sparse=True),
    "ArrayValue": Structure(
        {
            "booleanValues": "BooleanArray",
            "longValues": "LongArray",
            "doubleValues": "DoubleArray",
            "stringValues": "StringArray",
            "arrayValues": "ArrayOfArray",
        },
        is_union=True,
    ),
    "Field": Structure(
        {
            "isNull": "BoxedBoolean",
            "booleanValue": "BoxedBoolean",
            "longValue": "BoxedLong",
            "doubleValue": "BoxedDouble",
            "stringValue": "String",
            "blobValue": "Blob",
            "arrayValue": "ArrayValue",
        },
        is_union=True,
    ),
    "FieldList": Listed("Field"),
    "SqlRecords": Listed("FieldList"),
    "SqlParameter": Structure({"name": "ParameterName", "value": "Field", "typeHint": "TypeHint"}),
    "SqlParametersList": Listed("SqlParameter"),
    "SqlParameterSets": Listed("SqlParametersList"),
    "ResultSetOptions": Structure({"decimalReturnType": "DecimalReturnType", "longReturnType": "LongReturnType"}),
    "UpdateResult": Structure({"generatedFields": "FieldList"}),
    "UpdateResults": Listed("UpdateResult"),
    "ColumnMetadata": Structure(
        {
            "name": "String",
            "type": "Integer",
            "typeName": "String",
            "label": "String",
            "schemaName": "String",
            "tableName": "String",
            "isAutoIncrement": "Boolean",
            "isSigned": "Boolean",
            "isCurrency": "Boolean",
            "isCaseSensitive": "Boolean",
            "nullable": "Integer",
            "precision": "Integer",
            "scale": "Integer",
            "arrayBaseColumnType": "Integer",
        }
    ),
    "Metadata": Listed("ColumnMetadata"),
    "ExecuteStatementRequest": Structure(
        {
            **_TO_CALL,
            "sql": "SqlStatement",
            **_PLACE,
            "parameters": "SqlParametersList",
            **_IN_TRANSACTION,
            "includeResultMetadata": "Boolean",
            "continueAfterTimeout": "Boolean",
            "resultSetOptions": "ResultSetOptions",
            "formatRecordsAs": "RecordsFormatType",
        },
        (*_ANY_CALL, "sql"),
    ),
    "ExecuteStatementResponse": Structure(
        {
            "records": "SqlRecords",
            "columnMetadata": "Metadata",
            "numberOfRecordsUpdated": "RecordsUpdated",
            "generatedFields": "FieldList",
            "formattedRecords": "FormattedSqlRecords",
        }
    ),
    "BatchExecuteStatementRequest": Structure(
        {**_TO_CALL, "sql": "SqlStatement", **_PLACE, "parameterSets": "SqlParameterSets", **_IN_TRANSACTION},
        (*_ANY_CALL, "sql"),
    ),
    "BatchExecuteStatementResponse": Structure({"updateResults": "UpdateResults"}),
    "BeginTransactionRequest": Structure({**_TO_CALL, **_PLACE}, _ANY_CALL),
    "BeginTransactionResponse": Structure(_IN_TRANSACTION),
    "CommitTransactionRequest": Structure({**_TO_CALL, **_IN_TRANSACTION}, (*_ANY_CALL, "transactionId")),
    "CommitTransactionResponse": Structure({"transactionStatus": "TransactionStatus"}),
    "RollbackTransactionRequest": Structure({**_TO_CALL, **_IN_TRANSACTION}, (*_ANY_CALL, "transactionId")),
    "RollbackTransactionResponse": Structure({"transactionStatus": "TransactionStatus"}),
}

OPERATIONS = tuple(
    Operation(name, path, f"{name}Request", f"{name}Response", summary, own_errors)
    for name, path, summary, own_errors in (
        ("ExecuteStatement", "/Execute", "Runs a SQL statement.", (errors.UNSUPPORTED_RESULT,)),
        ("BatchExecuteStatement", "/BatchExecute", "Runs a SQL statement for each of several sets of parameters.", ()),
        ("BeginTransaction", "/BeginTransaction", "Starts a transaction.", ()),
        ("CommitTransaction", "/CommitTransaction", "Commits a transaction.", (errors.NOT_FOUND,)),
        ("RollbackTransaction", "/RollbackTransaction", "Rolls a transaction back.", (errors.NOT_FOUND,)),
    )
)
REFUSED_PATH, REFUSED_OPERATION = "/ExecuteSql", "ExecuteSql"  # deprecated by AWS since 2019

# What any operation may answer; the model's others (SecretsErrorException and the like) never occur here.
COMMON_ERRORS = (
    errors.ACCESS_DENIED,
    errors.BAD_REQUEST,
    errors.DATABASE_ERROR,
    errors.DATABASE_NOT_FOUND,
    errors.DATABASE_UNAVAILABLE,
    errors.FORBIDDEN,
    errors.INTERNAL,
    errors.SERVICE_UNAVAILABLE,
    errors.STATEMENT_TIMEOUT,
    errors.THROTTLED,
    errors.TRANSACTION_NOT_FOUND,
)


def structure(name: str) -> Structure:
    """Return a shape that is a structure."""
    found = SHAPES[name]
    assert isinstance(found, Structure)  # noqa: S101 (a name of the table above)
    return found


def choices(name: str) -> tuple[str, ...]:
    """Return the values of a shape that has but a few."""
    found = SHAPES[name]
    assert isinstance(found, Text)  # noqa: S101 (as above)
    return found.values
