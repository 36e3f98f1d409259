"""Parameters reach PostgreSQL with the value and the type that their caller meant, or are refused by name."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import pq

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import Parameter
from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, DataError
from emberpool_proxy.data_endpoint.parameters import bind, bind_all

from .bound_statements import Refused, run, session, values_of

LARGEST = (1 << 63) - 1
TYPES = {
    "isNull": (True, "text"),
    "booleanValue": (True, "boolean"),
    "longValue": (5, "integer"),
    "doubleValue": (1.5, "double precision"),
    "stringValue": ("x", "text"),
    "blobValue": ("AAE=", "bytea"),
}
FUZZED = settings(max_examples=100)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
LONGS = st.integers(-LARGEST - 1, LARGEST)
DOUBLES = st.floats(width=64)


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Iterator[pq.PGconn]:
    with session(postgres) as opened:
        opened.exec_(
            b"create type pg_temp.mood as enum ('calm', 'cross');"
            b"create temp table kinds (id uuid, day date, at timestamptz, mood pg_temp.mood, amount numeric, net inet,"
            b" wait interval, kind regtype, tags text[], ids int[], doc jsonb, old json, small smallint, flag boolean);"
        )
        yield opened


def parameter(name: str, member: str, value: Any, hint: str = "") -> Parameter:
    return Parameter(name, {member: value}, hint)


def array(member: str, *items: Any, hint: str = "") -> Parameter:
    return parameter("x", "arrayValue", {member: list(items)}, hint)


def nested(*arrays: Any) -> Parameter:
    return array("arrayValues", *arrays)


@pytest.mark.parametrize("column", ["id", "day", "at", "mood", "amount", "net", "wait", "kind", "tags", "doc", "old"])
def test_string_becomes_whatever_the_column_is(connection: pq.PGconn, column: str) -> None:
    """A string needs no cast and no typeHint in an INSERT or a comparison: PostgreSQL infers its type."""
    given = {
        "id": "6f1c1ab0-0000-4000-8000-000000000001",
        "day": "2026-02-28",
        "at": "2026-02-28 12:00:00.123456",
        "mood": "cross",
        "amount": "1.10",
        "net": "10.0.0.1",
        "wait": "1 day",
        "kind": "integer",
        "tags": '{a,"b c"}',
        "doc": '{"a": 1}',
        "old": "[1]",
    }[column]
    result = run(
        connection, f"insert into kinds ({column}) values (:x) returning {column}", parameter("x", "stringValue", given)
    )
    assert (result.get_value(0, 0) or b"").decode().startswith(given)


@pytest.mark.parametrize("member", TYPES)
def test_value_has_a_type_where_nothing_tells_it(connection: pq.PGconn, member: str) -> None:
    """Numbers are typed as literals are; a string whose type PostgreSQL could not infer is text."""
    value, expected = TYPES[member]
    assert values_of(connection, "select pg_typeof(:x)", parameter("x", member, value)) == [expected]


def test_long_is_as_wide_as_a_literal_would_be(connection: pq.PGconn) -> None:
    """A long that fits integer is one, so that functions with integer arguments take it; a larger one is bigint."""
    sql = "select pg_typeof(:x), substr('abc', :y), :y + :x"
    small, large = parameter("y", "longValue", 2), parameter("x", "longValue", 1 << 31)
    assert values_of(connection, sql, small, large) == ["bigint", "bc", str((1 << 31) + 2)]


@FUZZED
@given(st.lists(LONGS, max_size=5), DOUBLES, st.booleans(), TEXTS, st.binary())
def test_scalars_come_back_as_they_were(
    connection: pq.PGconn, longs: list[int], double: float, boolean: bool, text: str, blob: bytes
) -> None:
    """Every long, double, boolean, text and blob survives the way to PostgreSQL and back, to the last bit."""
    sent = (
        repr(double) if math.isfinite(double) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(double)]
    )
    sql = "select :d, :b, :t, encode(:y, 'hex'), array_to_string(:l::bigint[], ',')"
    row = values_of(
        connection,
        sql,
        parameter("d", "doubleValue", double if math.isfinite(double) else sent),
        parameter("b", "booleanValue", boolean),
        parameter("t", "stringValue", text),
        parameter("y", "blobValue", base64.b64encode(blob).decode()),
        parameter("l", "arrayValue", {"longValues": longs}),
    )
    assert repr(float(row[0] or "")) == repr(double)
    assert row[1:] == ["t" if boolean else "f", text, blob.hex(), ",".join(map(str, longs))]


@FUZZED
@given(st.lists(st.none() | TEXTS, max_size=6))
def test_array_of_strings_keeps_each_of_them(connection: pq.PGconn, texts: list[str | None]) -> None:
    """Quotes, braces, commas, backslashes, the word NULL and nulls survive in an array."""
    result = run(
        connection, "select e from unnest(:x) with ordinality u (e, n) order by n", array("stringValues", *texts)
    )
    rows = [result.get_value(row, 0) for row in range(result.ntuples)]
    assert [None if value is None else value.decode() for value in rows] == texts


@pytest.mark.parametrize(
    ("sql", "given", "expected"),
    [
        ("select 2::smallint = any(:x)", array("longValues", 1, 2), "t"),
        ("select pg_typeof(array[1]::int[] || :x)", array("longValues", 1, None), "integer[]"),
        ("select pg_typeof(:x)", array("longValues", 1), "bigint[]"),
        ("select (:x)[1]", array("booleanValues", True, None), "t"),
        ("select pg_typeof(:x)", array("booleanValues", True), "boolean[]"),
        ("select :x::float[]", array("doubleValues", 1.5, "NaN", "-Infinity", 2), "{1.5,NaN,-Infinity,2}"),
        ("select pg_typeof(:x)", array("doubleValues", 1.5), "double precision[]"),
        ("select 'cross' = any(:x::pg_temp.mood[])", array("stringValues", "cross"), "t"),
        ("select cardinality(:x)", array("stringValues"), "0"),
        ("select :x::int[]", nested({"longValues": [1, None]}, {"longValues": [3, 4]}), "{{1,NULL},{3,4}}"),
        ("select pg_typeof(:x)", nested({"longValues": [1]}), "bigint[]"),
        ("select :x::text[]", nested(), "{}"),
        ("select array_dims(:x)", nested({"arrayValues": [{"stringValues": ["a", "b"]}]}), "[1:1][1:1][1:2]"),
    ],
)
def test_array_is_an_array_of_what_it_is_used_for(
    connection: pq.PGconn, sql: str, given: Parameter, expected: str
) -> None:
    """Arrays of any kind and depth can be bound, are inferred where they can be, and typed by their kind elsewhere."""
    assert values_of(connection, sql, given) == [expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (parameter("x", "stringValue", "2026-02-28", "DATE"), ["date", "2026-02-28"]),
        (parameter("x", "stringValue", "12:30:01.5", "TIME"), ["time without time zone", "12:30:01.5"]),
        (
            parameter("x", "stringValue", "2026-02-28 12:30:01.123456", "TIMESTAMP"),
            ["timestamp without time zone", "2026-02-28 12:30:01.123456"],
        ),
        (parameter("x", "stringValue", "1.10", "DECIMAL"), ["numeric", "1.10"]),
        (parameter("x", "longValue", 7, "DECIMAL"), ["numeric", "7"]),
        (parameter("x", "doubleValue", 1e-7, "DECIMAL"), ["numeric", "0.0000001"]),
        (
            parameter("x", "stringValue", "6F1C1AB0-0000-4000-8000-000000000001", "UUID"),
            ["uuid", "6f1c1ab0-0000-4000-8000-000000000001"],
        ),
        (parameter("x", "stringValue", '{"a":1}', "JSON"), ["jsonb", '{"a": 1}']),
        (parameter("x", "isNull", True, "UUID"), ["uuid", None]),
        (parameter("x", "isNull", True, "JSON"), ["jsonb", None]),
        (array("stringValues", "2026-02-28", None, hint="DATE"), ["date[]", "{2026-02-28,NULL}"]),
        (array("longValues", 1, hint="DECIMAL"), ["numeric[]", "{1}"]),
        (array("stringValues", '{"a":1}', hint="JSON"), ["jsonb[]", '{"{\\"a\\": 1}"}']),
    ],
)
def test_type_hint_is_the_type(connection: pq.PGconn, given: Parameter, expected: list[str | None]) -> None:
    """A hint types a string, a number as DECIMAL, a NULL and the elements of an array."""
    assert values_of(connection, "select pg_typeof(:x), :x", given) == expected


def test_json_hint_fits_a_json_column(connection: pq.PGconn) -> None:
    """JSON goes into columns of type json as well as jsonb: it is typed only where PostgreSQL can't infer it."""
    given = parameter("x", "stringValue", '{"b": 1,  "a": 2}', "JSON")
    sql = "insert into kinds (old, doc) values (:x, :y) returning old, doc"
    other = Parameter("y", given.value, "JSON")
    result = run(connection, sql, given, other)
    assert (result.get_value(0, 0), result.get_value(0, 1)) == (b'{"b": 1,  "a": 2}', b'{"a": 2, "b": 1}')


def test_value_of_another_type_is_postgresqls_to_refuse(connection: pq.PGconn) -> None:
    """Text that is no value of its type is answered with PostgreSQL's own words."""
    with pytest.raises(Refused, match="invalid input syntax for type uuid"):
        run(connection, "select :x", parameter("x", "stringValue", "nothing", "UUID"))


REFUSED = [
    (Parameter("x", None), "0 fields set"),
    (Parameter("x", {}), "0 fields set"),
    (Parameter("x", {"isNull": True, "longValue": 1}), "2 fields set"),
    (parameter("x", "isNull", False), "isNull False"),
    (parameter("x", "structValue", {}), "unknown kind 'structValue'"),
    (parameter("x", "longValue", LARGEST + 1), "64 bits"),
    (parameter("x", "longValue", True), "bool as a long"),
    (parameter("x", "longValue", 1.0), "float as a long"),
    (parameter("x", "longValue", "1"), "str as a long"),
    (parameter("x", "booleanValue", 1), "int as a boolean"),
    (parameter("x", "doubleValue", 10**400), "out of range"),
    (parameter("x", "doubleValue", "1.5"), "str as a double"),
    (parameter("x", "doubleValue", True), "bool as a double"),
    (parameter("x", "stringValue", 5), "int as a string"),
    (parameter("x", "stringValue", "a\0b"), "NUL"),
    (parameter("x", "stringValue", "\ud800"), "surrogate"),
    (parameter("x", "blobValue", "AA=A"), "not Base64"),
    (parameter("x", "blobValue", "AAE*="), "not Base64"),
    (parameter("x", "blobValue", "é"), "not Base64"),
    (parameter("x", "blobValue", 5), "not Base64"),
    (parameter("x", "arrayValue", [1]), "one list of"),
    (parameter("x", "arrayValue", {}), "one list of"),
    (parameter("x", "arrayValue", {"longValues": 1}), "one list of"),
    (parameter("x", "arrayValue", {"blobValues": ["AAE="]}), "one list of"),
    (parameter("x", "arrayValue", {"longValues": [1], "stringValues": []}), "one list of"),
    (array("longValues", 1, "2"), "str as a long"),
    (array("stringValues", "a", "b\0"), "NUL"),
    (nested(None), "one list of"),
    (nested({"longValues": [1]}, {"longValues": [1, 2]}), "different lengths or kinds"),
    (nested({"longValues": [1]}, {"stringValues": ["1"]}), "different lengths or kinds"),
    (parameter("x", "stringValue", "a", "ENUM"), "unknown typeHint 'ENUM'"),
    (parameter("x", "longValue", 5, "UUID"), "has a longValue with typeHint UUID"),
    (parameter("x", "booleanValue", True, "DECIMAL"), "has a booleanValue with typeHint DECIMAL"),
    (parameter("x", "blobValue", "AAE=", "JSON"), "has a blobValue with typeHint JSON"),
    (array("longValues", 1, hint="DATE"), "has a arrayValue with typeHint DATE"),
]


@pytest.mark.parametrize(("given", "says"), REFUSED)
def test_value_that_cannot_be_bound_is_refused_by_name(given: Parameter, says: str) -> None:
    """A value that is none is a bad request that names the parameter and says why, before anything is sent."""
    with pytest.raises(DataError, match=says) as refused:
        bind(given)
    assert refused.value.kind == BAD_REQUEST
    assert refused.value.message.startswith('Parameter "x" ')


def test_array_may_have_as_many_dimensions_as_in_postgresql(connection: pq.PGconn) -> None:
    """Six dimensions are bound, the seventh is refused: so deep nesting can't exhaust the stack either."""
    deep: dict[str, Any] = {"longValues": [1]}
    for _ in range(5):
        deep = {"arrayValues": [deep]}
    assert values_of(connection, "select :x::int[]", parameter("x", "arrayValue", deep)) == ["{{{{{{1}}}}}}"]
    for _ in range(100_000):
        deep = {"arrayValues": [deep]}
    with pytest.raises(DataError, match="more than 6 dimensions"):
        bind(parameter("x", "arrayValue", deep))


def test_names_get_their_values_in_order() -> None:
    """The values are in the order of the names; unused parameters are ignored, and equal duplicates too."""
    a, b = parameter("a", "longValue", 1), parameter("b", "longValue", 2)
    assert [value.data for value in bind_all(("b", "a"), (a, b, parameter("c", "longValue", 3), a))] == [b"2", b"1"]


def test_name_without_a_parameter_is_told_in_awss_words() -> None:
    """A parameter set of a batch that lacks a name is a bad request, in the words that clients of AWS know."""
    with pytest.raises(DataError, match=r"^Cannot find parameter: b$") as refused:
        bind_all(("a", "b"), (parameter("a", "longValue", 1),))
    assert refused.value.kind == BAD_REQUEST


def test_two_values_of_one_name_are_refused() -> None:
    """Which of two values was meant can't be known."""
    with pytest.raises(DataError, match='Parameter "a" was given twice'):
        bind_all(("a",), (parameter("a", "longValue", 1), parameter("a", "longValue", 2)))
