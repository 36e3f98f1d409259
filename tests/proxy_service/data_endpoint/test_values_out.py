"""Values at the edges of their types, the options for numbers, and round trips against what psycopg reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emberpool_local.postgres.server import EmbeddedPostgres

from .parsed_answers import Answers, answers

LONG, DOUBLE, BOOLEAN, STRING = "longValues", "doubleValues", "booleanValues", "stringValues"
MANY_DIGITS = "1" + "0" * 131_071 + "." + "5" * 16_383  # the longest that numeric takes


@pytest.fixture(scope="module")
def out(postgres: EmbeddedPostgres) -> Iterator[Answers]:
    with answers(postgres.conninfo()) as found:
        yield found


EDGES: dict[str, dict[str, Any]] = {
    "'NaN'::float8": {"stringValue": "NaN"},
    "'-Infinity'::float4": {"stringValue": "-Infinity"},
    "'Infinity'::float8": {"stringValue": "Infinity"},
    "1e308::float8": {"doubleValue": 1e308},
    "5e-324::float8": {"doubleValue": 5e-324},
    "3.14::float4": {"doubleValue": 3.14},
    "3::float8": {"doubleValue": 3.0},
    "'NaN'::numeric": {"stringValue": "NaN"},
    "'-Infinity'::numeric": {"stringValue": "-Infinity"},
    "1.10": {"stringValue": "1.10"},
    f"{MANY_DIGITS}::numeric": {"stringValue": MANY_DIGITS},
    "9007199254740993": {"longValue": 9007199254740993},
    "(-9223372036854775808)::int8": {"longValue": -(2**63)},
    "'infinity'::timestamptz": {"stringValue": "infinity"},
    "'-infinity'::timestamp": {"stringValue": "-infinity"},
    "'infinity'::date": {"stringValue": "infinity"},
    "'0044-03-15 BC'::date": {"stringValue": "0044-03-15 BC"},
    "'0044-03-15 10:00:00.000001+00 BC'::timestamptz": {"stringValue": "0044-03-15 10:00:00.000001 BC"},
    "'0044-03-15 10:00 BC'::timestamp": {"stringValue": "0044-03-15 10:00:00 BC"},
    "'294276-12-31 23:59:59.999999+00'::timestamptz": {"stringValue": "294276-12-31 23:59:59.999999"},
    "'2026-07-01 12:00:00.123456+05:30'::timestamptz": {"stringValue": "2026-07-01 06:30:00.123456"},
    "'24:00'::time": {"stringValue": "24:00:00"},
    "'12:00+05:30'::timetz": {"stringValue": "12:00:00+05:30"},
    "''": {"stringValue": ""},
    "'\u2028\U0001f600 \"quoted\" \\ \t'": {"stringValue": '\u2028\U0001f600 "quoted" \\ \t'},
    "''::bytea": {"blobValue": b""},
    "NULL": {"isNull": True},
    '\'{"a" :  1e400, "a": 12345678901234567890.50, "b\\" c": "x \\\\" }\'::json': {
        "stringValue": '{"a":1e400,"a":12345678901234567890.50,"b\\" c":"x \\\\"}'
    },
    "'[ ]'::jsonb": {"stringValue": "[]"},
    "'  \"a  b\"\n'::json": {"stringValue": '"a  b"'},
    "'{}'::int[]": {"arrayValue": {LONG: []}},
    "'{NULL,NULL}'::bool[]": {"arrayValue": {BOOLEAN: [None, None]}},
    "'{1.5,NaN,NULL}'::float8[]": {"arrayValue": {STRING: ["1.5", "NaN", None]}},
    "'{1.5,3,NULL}'::float4[]": {"arrayValue": {DOUBLE: [1.5, 3.0, None]}},
    "'{{1,2},{Infinity,4}}'::float8[]": {
        "arrayValue": {"arrayValues": [{STRING: ["1", "2"]}, {STRING: ["Infinity", "4"]}]}
    },
    "'[-1:0][5:6]={{1,2},{3,NULL}}'::int[]": {"arrayValue": {"arrayValues": [{LONG: [1, 2]}, {LONG: [3, None]}]}},
    "'{{{t}}}'::bool[]": {"arrayValue": {"arrayValues": [{"arrayValues": [{BOOLEAN: [True]}]}]}},
    "ARRAY['NULL', NULL, '', '{}', 'a,b', '\"', '\\']": {
        "arrayValue": {STRING: ["NULL", None, "", "{}", "a,b", '"', "\\"]}
    },
    "ARRAY['2026-07-01 12:00+02'::timestamptz, 'infinity']": {
        "arrayValue": {STRING: ["2026-07-01 10:00:00", "infinity"]}
    },
    "ARRAY['{\"a\": [1, 2]}'::jsonb]": {"arrayValue": {STRING: ['{"a":[1,2]}']}},
    "ARRAY[1.50, NULL]": {"arrayValue": {STRING: ["1.50", None]}},
    "ARRAY['\\x00ff'::bytea]": {"arrayValue": {STRING: ["\\x00ff"]}},
    "ARRAY['(3,4),(1,2)'::box, NULL]": {"arrayValue": {STRING: ["(3,4),(1,2)", None]}},
    "ARRAY[['(3,4),(1,2)'::box]]": {"arrayValue": {"arrayValues": [{STRING: ["(3,4),(1,2)"]}]}},
}


@pytest.mark.parametrize("expression", EDGES, ids=lambda expression: expression[:40])
def test_edges_of_types(out: Answers, expression: str) -> None:
    """What JSON, doubles or the service's model have no form for comes back as text; nothing is rounded or lost."""
    assert out.field(expression) == EDGES[expression]


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ("12::numeric", {"longValue": 12}),
        ("-9223372036854775808::numeric", {"longValue": -(2**63)}),
        ("9223372036854775808::numeric", {"doubleValue": 2.0**63}),
        ("12.00", {"doubleValue": 12.0}),
        ("-0.5", {"doubleValue": -0.5}),
        ("1e400::numeric", {"stringValue": "1" + "0" * 400}),
        ("'NaN'::numeric", {"stringValue": "NaN"}),
        ("NULL::numeric", {"isNull": True}),
        ("ARRAY[1, NULL]::numeric[]", {"arrayValue": {LONG: [1, None]}}),
        ("ARRAY[1, 2.5]::numeric[]", {"arrayValue": {DOUBLE: [1.0, 2.5]}}),
        ("ARRAY[1, 'NaN']::numeric[]", {"arrayValue": {STRING: ["1", "NaN"]}}),
    ],
)
def test_decimals_as_numbers(out: Answers, expression: str, field: dict[str, Any]) -> None:
    """decimalReturnType DOUBLE_OR_LONG: a long without a scale, else a double; text where neither can hold it."""
    assert out.field(expression, decimal_as_number=True) == field


def test_longs_as_text(out: Answers) -> None:
    """longReturnType STRING turns whole numbers into text, in arrays too, and nothing else."""
    fields = out.fields(
        "SELECT 1::int2, 2, 9007199254740993, 4::oid, NULL::int, ARRAY[[1, NULL]], '{}'::int8[], 1.5::float8, true",
        long_as_text=True,
    )
    assert fields == [
        *({"stringValue": text} for text in ("1", "2", "9007199254740993", "4")),
        {"isNull": True},
        {"arrayValue": {"arrayValues": [{STRING: ["1", None]}]}},
        {"arrayValue": {STRING: []}},
        {"doubleValue": 1.5},
        {"booleanValue": True},
    ]


def test_either_bytea_output_is_read(out: Answers) -> None:
    """A role whose bytea_output is escape gets the same blobs."""
    for setting in ("hex", "escape"):
        out.result(f"SET bytea_output TO {setting}")
        assert out.field(r"'\x00ff5c27'::bytea") == {"blobValue": b"\x00\xff\\'"}
    out.result("RESET bytea_output")


def test_another_time_zone_keeps_its_offset(out: Answers) -> None:
    """Where a statement has changed TimeZone, the offset stays: without it the moment would be another."""
    out.result("SET timezone TO 'Asia/Kolkata'")
    try:
        assert out.field("'2026-07-01 12:00+00'::timestamptz") == {"stringValue": "2026-07-01 17:30:00+05:30"}
    finally:
        out.result("SET timezone TO 'UTC'")


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
INT8 = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 (hypothesis adds it)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": INT8,
    "float4": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float8": st.floats(allow_nan=False, allow_infinity=False),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=10),
    "text": TEXT,
    "varchar": TEXT,
    "bytea": st.binary(max_size=40),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": st.datetimes(),
    "timestamptz": MOMENTS,
    "uuid": st.uuids(),
    "jsonb": DOCUMENTS,
    "json": DOCUMENTS,
}
READ = {
    "bool": lambda field: field["booleanValue"],
    **dict.fromkeys(("int2", "int4", "int8"), lambda field: field["longValue"]),
    **dict.fromkeys(("float4", "float8"), lambda field: field["doubleValue"]),
    "numeric": lambda field: Decimal(field["stringValue"]),
    **dict.fromkeys(("text", "varchar"), lambda field: field["stringValue"]),
    "bytea": lambda field: field["blobValue"],
    "date": lambda field: date.fromisoformat(field["stringValue"]),
    "time": lambda field: time.fromisoformat(field["stringValue"]),
    "timestamp": lambda field: datetime.fromisoformat(field["stringValue"]),
    "timestamptz": lambda field: datetime.fromisoformat(field["stringValue"] + "+00:00"),
    "uuid": lambda field: UUID(field["stringValue"]),
    **dict.fromkeys(("json", "jsonb"), lambda field: json.loads(field["stringValue"])),
}


def as_parameter(kind: str, value: Any) -> Any:
    return json.dumps(value) if kind in ("json", "jsonb") and value is not None else value


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.conninfo(), autocommit=True, options="-c timezone=UTC -c datestyle=ISO") as opened:
        yield opened


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_come_back_as_psycopg_reads_them(connection: psycopg.Connection[Any], out: Answers, kind: str) -> None:
    """Whatever a column of several rows holds, its Fields mean what psycopg reads from the same result."""

    @settings(max_examples=20)
    @given(values=st.lists(st.none() | SCALARS[kind], min_size=1, max_size=5))
    def check(values: list[Any]) -> None:
        rows = ", ".join([f"(%s::{kind})"] * len(values))
        cursor = connection.execute(f"VALUES {rows}", [as_parameter(kind, value) for value in values])
        theirs = [row[0] for row in cursor.fetchall()]
        ours = [
            READ[kind](field) if field != {"isNull": True} else None for (field,) in out.records_of(cursor.pgresult)
        ]
        assert [repr(value) for value in ours] == [repr(value) for value in theirs]  # -0.0 is not 0.0

    check()


def nested(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Arrays of one to three dimensions, rectangular as PostgreSQL's are."""

    def shaped(sizes: list[int]) -> st.SearchStrategy[list[Any]]:
        strategy: st.SearchStrategy[Any] = st.none() | values
        for size in sizes:
            strategy = st.lists(strategy, min_size=size, max_size=size)
        return strategy

    return st.lists(st.integers(1, 3), min_size=1, max_size=3).flatmap(shaped)


def items_of(array: dict[str, Any]) -> list[Any]:
    ((member, items),) = array.items()
    return [items_of(inner) for inner in items] if member == "arrayValues" else items


@pytest.mark.parametrize(("kind", "member"), [("int8", LONG), ("float8", DOUBLE), ("bool", BOOLEAN), ("text", STRING)])
def test_arrays_come_back_as_psycopg_reads_them(
    connection: psycopg.Connection[Any], out: Answers, kind: str, member: str
) -> None:
    """Arrays of any depth, with NULLs and any text, have psycopg's items; the empty one has its member too."""

    @settings(max_examples=20)
    @given(array=nested(SCALARS[kind]))
    @example(array=[])
    @example(array=[None])
    def check(array: list[Any]) -> None:
        cursor = connection.execute(f"SELECT %s::{kind}[]", [array])
        ((theirs,),) = cursor.fetchall()
        (((ours),),) = out.records_of(cursor.pgresult)
        assert items_of(ours["arrayValue"]) == theirs
        innermost = ours["arrayValue"]
        while "arrayValues" in innermost:
            innermost = innermost["arrayValues"][0]
        assert list(innermost) == [member]

    check()


@given(document=DOCUMENTS, indent=st.sampled_from([None, 0, 3]))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_json_is_compact_and_the_same(document: Any, indent: int | None, out: Answers) -> None:
    """However a document is spaced it comes back without spaces between its tokens and else unchanged."""
    result = out.result("SELECT $1::json", [json.dumps(document, indent=indent, ensure_ascii=False).encode()])
    (((field),),) = out.records_of(result)
    assert field["stringValue"] == json.dumps(document, separators=(",", ":"), ensure_ascii=False)
