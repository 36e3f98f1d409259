"""Statements with named parameters, run by a real server as the endpoint would run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from psycopg import pq

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import Parameter
from emberpool_proxy.data_endpoint.parameters import bind_all
from emberpool_proxy.data_endpoint.sql_text import compile_sql
from emberpool_proxy.data_endpoint.values import Value

# What PostgreSQL says when a type can't be inferred: of a parameter, of a polymorphic function, of which function.
UNDETERMINED = {b"42P18", b"42P08", b"42804", b"42725", b"42883"}


class Refused(Exception):  # noqa: N818 - a fact, not a mistake of ours
    """What PostgreSQL said no to, with the position in the text that it got."""

    def __init__(self, result: pq.abc.PGresult) -> None:
        super().__init__(result.error_message.decode())
        self.state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        self.position = int(result.error_field(pq.DiagnosticField.STATEMENT_POSITION) or 0)


@contextmanager
def session(postgres: EmbeddedPostgres) -> Iterator[pq.PGconn]:
    connection = pq.PGconn.connect(f"{postgres.conninfo()} client_encoding=UTF8".encode())
    assert connection.status == pq.ConnStatus.OK, connection.get_error_message()
    connection.exec_(b"set timezone = 'UTC'")
    try:
        yield connection
    finally:
        connection.finish()


def values_of(connection: pq.PGconn, sql: str, *parameters: Parameter) -> list[str | None]:
    """Return the first row's columns as text."""
    result = run(connection, sql, *parameters)
    return [_text(result.get_value(0, column)) for column in range(result.nfields)]


def run(connection: pq.PGconn, sql: str, *parameters: Parameter) -> pq.PGresult:
    compiled = compile_sql(sql, frozenset(each.name for each in parameters))
    values = bind_all(compiled.names, parameters)
    result = _sent(connection, compiled.text, values, [value.oid for value in values])
    if result.error_field(pq.DiagnosticField.SQLSTATE) in UNDETERMINED:
        result = _sent(connection, compiled.text, values, [value.oid or value.fallback_oid for value in values])
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise Refused(result)
    return result


def _sent(connection: pq.PGconn, text: bytes, values: Sequence[Value], oids: Sequence[int]) -> pq.PGresult:
    data = [value.data for value in values]
    return connection.exec_params(text, data, oids, [value.is_binary for value in values])


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
