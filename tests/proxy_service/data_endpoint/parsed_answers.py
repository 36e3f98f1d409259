"""Statements run on one real connection; their answers, built by our modules, as botocore's parser reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, StructureShape
from botocore.parsers import create_parser
from psycopg import pq
from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.calls import Caller, ExecuteStatement
from emberpool_proxy.data_endpoint.catalog import Catalog
from emberpool_proxy.data_endpoint.encoders import Wanted
from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, DataError
from emberpool_proxy.data_endpoint.formatted import formatted_records
from emberpool_proxy.data_endpoint.metadata import column_metadata
from emberpool_proxy.data_endpoint.results import JsonRows, has_rows, updated_records
from emberpool_proxy.data_endpoint.types import ColumnType
from emberpool_proxy.data_endpoint.values import Value

MIB = 1024 * 1024
CALLER = Caller("function", "main")
# As the endpoint's sessions log in.
PARAMETERS = {"client_encoding": "UTF8", "datestyle": "ISO", "timezone": "UTC", "intervalstyle": "postgres"}
WITH_RESULT = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
PLAINLY = Wanted()

Fields = list[dict[str, Any]]


def records_json(result: PGresult, columns: Sequence[ColumnType], limit_bytes: int, wanted: Wanted = PLAINLY) -> bytes:
    """The answer's `records`."""
    rows = JsonRows(columns, wanted, limit_bytes)
    rows.add(result)
    return rows.json()


class Answers:
    """Answers over one connection; `asked` are the queries of the catalog."""

    def __init__(self, connection: pq.PGconn, catalog: Catalog | None = None) -> None:
        self.connection = connection
        self.catalog = catalog or Catalog()
        self.asked: list[bytes] = []

    def result(self, sql: str, values: Sequence[bytes | None] = ()) -> PGresult:
        result = self.connection.exec_params(sql.encode(), values)
        if result.status not in WITH_RESULT:
            raise DataError(DATABASE_ERROR, result.get_error_message())
        return result

    async def ask(self, query: bytes, values: Sequence[Value]) -> PGresult:
        self.asked.append(query)
        result = self.connection.exec_params(query, [value.data for value in values], [value.oid for value in values])
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise DataError(DATABASE_ERROR, result.get_error_message())
        return result

    def columns(self, result: PGresult, caller: Caller = CALLER) -> Sequence[ColumnType]:
        return ended(self.catalog.columns(result, caller, self.ask))

    def records(self, sql: str, limit_bytes: int = 64 * MIB, **options: bool) -> list[Fields]:
        """The statement's records as boto3 gives them."""
        return self.records_of(self.result(sql), limit_bytes, **options)

    def records_of(self, result: PGresult, limit_bytes: int = 64 * MIB, **options: bool) -> list[Fields]:
        call = ExecuteStatement("", **options)
        wanted = Wanted(call.long_as_text, call.decimal_as_number)
        records = records_json(result, self.columns(result), limit_bytes, wanted)
        return parsed(b'{"records":%b}' % records)["records"]

    def fields(self, sql: str, **options: bool) -> Fields:
        """The Fields of the statement's only row."""
        (row,) = self.records(sql, **options)
        return row

    def field(self, expression: str, **options: bool) -> dict[str, Any]:
        """The Field of an expression."""
        (field,) = self.fields(f"SELECT {expression}", **options)
        return field

    def text(self, expression: str) -> str:
        """What PostgreSQL writes for an expression."""
        return (self.result(f"SELECT {expression}").get_value(0, 0) or b"").decode()

    def formatted(self, sql: str, limit_bytes: int = 64 * MIB, **options: bool) -> str:
        result = self.result(sql)
        return formatted_records(result, self.columns(result), ExecuteStatement("", **options), limit_bytes)

    def metadata(self, sql: str, caller: Caller = CALLER) -> list[dict[str, Any]]:
        """The statement's columnMetadata as boto3 gives it."""
        result = self.result(sql)
        sources = ended(self.catalog.sources(result, caller, self.ask))
        body = column_metadata(result, self.columns(result, caller), sources)
        return parsed(b'{"columnMetadata":%b}' % body)["columnMetadata"]

    def updated(self, sql: str) -> tuple[bool, int]:
        """Whether the statement's answer has records, and how many it says were updated."""
        result = self.result(sql)
        return has_rows(result), updated_records(result)


@contextmanager
def answers(conninfo: str, catalog: Catalog | None = None) -> Iterator[Answers]:
    """Answers over a connection of its own, with the parameters of the endpoint's sessions."""
    connection = pq.PGconn.connect(conninfo.encode())
    try:
        assert connection.status == pq.ConnStatus.OK, connection.get_error_message()
        for name, value in PARAMETERS.items():
            connection.exec_(f"SET {name} TO '{value}'".encode())
        yield Answers(connection, catalog)
    finally:
        connection.finish()


@cache
def _shape(operation: str) -> StructureShape:
    return ServiceModel(Loader().load_service_model("rds-data", "service-2")).operation_model(operation).output_shape


def parsed(body: bytes, operation: str = "ExecuteStatement") -> dict[str, Any]:
    """What boto3 makes of an answer; it refuses a union with two members, and JSON that is none."""
    response = {"body": body, "headers": {}, "status_code": 200}
    answer = create_parser("rest-json").parse(response, _shape(operation))
    answer.pop("ResponseMetadata")
    return answer


def ended(coroutine: Any) -> Any:
    """The value of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        return returned.value
    raise AssertionError("the coroutine waits")
