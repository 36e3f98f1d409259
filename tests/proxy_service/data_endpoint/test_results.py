"""Records, counts, generated fields and formatted records, and the limit of an answer's size."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.encoders import Wanted
from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, DataError
from emberpool_proxy.data_endpoint.results import JsonRows, ResultTooLarge, generated_fields

from .parsed_answers import MIB, Answers, answers, parsed, records_json

KIB = 1024
MOST_COLUMNS = 1664  # of a PostgreSQL result


@pytest.fixture(scope="module")
def out(postgres: EmbeddedPostgres) -> Iterator[Answers]:
    with answers(postgres.conninfo()) as found:
        found.result("CREATE TEMPORARY TABLE cats (id serial, name text)")
        yield found


@pytest.mark.parametrize(
    ("sql", "has_records", "updated"),
    [
        ("SELECT 1", True, 0),
        ("SELECT 1 WHERE false", True, 0),
        ("VALUES (1), (2)", True, 0),
        ("INSERT INTO cats (name) SELECT 'cat ' || g FROM generate_series(1, 3) g", False, 3),
        ("INSERT INTO cats (name) VALUES ('a'), ('b') RETURNING id", True, 0),
        ("UPDATE cats SET name = 'x' WHERE id < 3", False, 2),
        ("UPDATE cats SET name = 'x' WHERE false", False, 0),
        ("UPDATE cats SET name = 'x' WHERE id < 3 RETURNING name", True, 0),
        ("MERGE INTO cats USING (VALUES (1)) v (id) ON v.id = cats.id WHEN MATCHED THEN DELETE", False, 1),
        ("DELETE FROM cats WHERE id = 2", False, 1),
        ("CREATE TEMPORARY TABLE copies AS SELECT g FROM generate_series(1, 5) g", False, 0),
        ("DROP TABLE copies", False, 0),
        ("SET search_path TO public", False, 0),
        ("DO 'BEGIN END'", False, 0),
        ("SHOW timezone", True, 0),
        ("EXPLAIN SELECT 1", True, 0),
    ],
)
def test_counts_and_records_are_as_at_aws(out: Answers, sql: str, has_records: bool, updated: int) -> None:
    """What gives rows has records and counts 0, RETURNING too; others count the changed rows; DDL counts 0."""
    assert out.updated(sql) == (has_records, updated)


def test_records_of_returning(out: Answers) -> None:
    """What RETURNING gives are records."""
    records = out.records("INSERT INTO cats (name) VALUES ('a'), (NULL) RETURNING name, length(name)")
    assert records == [[{"stringValue": "a"}, {"longValue": 1}], [{"isNull": True}, {"isNull": True}]]


def test_a_result_without_rows_or_columns(out: Answers) -> None:
    """No rows are an empty list; rows without columns are empty lists."""
    assert out.records("SELECT 1 WHERE false") == []
    assert out.records("SELECT FROM generate_series(1, 300)") == [[]] * 300


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000])
def test_all_rows_come_in_their_order(out: Answers, count: int) -> None:
    """However many rows there are, no chunk of them is lost, doubled or moved."""
    records = out.records(f"SELECT g, 'row ' || g FROM generate_series(1, {count}) g")
    assert records == [[{"longValue": n}, {"stringValue": f"row {n}"}] for n in range(1, count + 1)]


def test_the_widest_result(out: Answers) -> None:
    """As many columns as PostgreSQL allows, of several types, are read."""
    columns = ", ".join(["1", "'a'", "true", "1.5::float8"] * (MOST_COLUMNS // 4))
    fields = out.fields(f"SELECT {columns}")
    one = [{"longValue": 1}, {"stringValue": "a"}, {"booleanValue": True}, {"doubleValue": 1.5}]
    assert fields == one * (MOST_COLUMNS // 4)


def test_parts_of_a_result_make_one_array(out: Answers) -> None:
    """The parts of libpq's chunked rows mode, the last of them empty, are one array of records."""
    parts = [out.result(f"SELECT g FROM generate_series({n}, {n + 1}) g") for n in (1, 3)]
    parts += [out.result("SELECT g FROM generate_series(1, 0) g")]
    rows = JsonRows(out.columns(parts[0]), Wanted(), KIB)
    for part in parts:
        rows.add(part)
    assert [fields[0]["longValue"] for fields in json.loads(rows.json())] == [1, 2, 3, 4]


def test_the_limit_is_exact(out: Answers) -> None:
    """As many bytes as are allowed are an answer, one more is none; the words are those that clients look for."""
    result = out.result("SELECT repeat('x', 100)")
    columns = out.columns(result)
    records = records_json(result, columns, KIB)
    assert records_json(result, columns, len(records)) == records
    with pytest.raises(ResultTooLarge, match="^Database returned more than the allowed response size limit") as refused:
        records_json(result, columns, len(records) - 1)
    assert refused.value.kind == BAD_REQUEST


@pytest.mark.parametrize(
    "rows",
    [
        "SELECT g, 'row ' || g FROM generate_series(1, 20000) g",
        "SELECT NULL, NULL FROM generate_series(1, 20000) g",
        "SELECT repeat('x', 20000) FROM generate_series(1, 500) g",
    ],
    ids=["many small rows", "rows of NULLs", "large rows"],
)
def test_a_result_above_the_limit_costs_no_more_than_the_limit(out: Answers, rows: str) -> None:
    """Building stops early: of a result of megabytes only some of the limit's bytes and a chunk are ever held."""
    result = out.result(rows)
    columns = out.columns(result)
    records_json(out.result("SELECT 1"), columns[:1], KIB)  # what is made once is made
    tracemalloc.start()
    try:
        with pytest.raises(ResultTooLarge):
            records_json(result, columns, 64 * KIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chunk = 128 * 20_000 * 3 if "repeat" in rows else 0
    assert peak < 512 * KIB + chunk


def test_nothing_of_a_result_is_kept(out: Answers) -> None:
    """When the answer is built, or refused, no reader holds the result's rows any more."""
    result = out.result("SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
    columns = out.columns(result)
    holders = sys.getrefcount(result)
    records_json(result, columns, 8 * MIB)
    assert sys.getrefcount(result) == holders
    with pytest.raises(ResultTooLarge):
        records_json(result, columns, KIB)
    assert sys.getrefcount(result) == holders


def test_generated_fields_are_what_returning_gave(out: Answers) -> None:
    """In a batch the fields of RETURNING are the update's generated fields; without it they are empty."""
    for sql, fields in {
        "INSERT INTO cats (name) VALUES ('a') RETURNING name, 7": [{"stringValue": "a"}, {"longValue": 7}],
        "INSERT INTO cats (name) VALUES ('a'), ('b') RETURNING name": [{"stringValue": "a"}, {"stringValue": "b"}],
        "INSERT INTO cats (name) VALUES ('a')": [],
        "UPDATE cats SET name = 'b' WHERE false RETURNING name": [],
    }.items():
        result = out.result(sql)
        body = b'{"updateResults":[{"generatedFields":%b}]}' % generated_fields(result, out.columns(result), KIB)
        assert parsed(body, "BatchExecuteStatement") == {"updateResults": [{"generatedFields": fields}]}


FORMATTED = {
    "SELECT 17 AS a": '[{"a":17}]',
    "SELECT 10.0::float8 AS a": '[{"a":10.0}]',
    "SELECT * FROM (VALUES (0, 'Jane'), (1, NULL)) v (id, name)": '[{"id":0,"name":"Jane"},{"id":1,"name":null}]',
    "SELECT true AS t, false AS f": '[{"t":true,"f":false}]',
    "SELECT 1.50 AS n": '[{"n":"1.50"}]',
    "SELECT 'hello world'::bytea AS blob": '[{"blob":"aGVsbG8gd29ybGQ="}]',
    "SELECT '邓' AS u, E'\\b\\n\\f\\\\\"' AS e": '[{"u":"邓","e":"\\b\\n\\f\\\\\\""}]',
    "SELECT '{{1,2},{3,NULL}}'::int[] AS a, '{}'::text[] AS b": '[{"a":[[1,2],[3,null]],"b":[]}]',
    "SELECT '2026-11-22 10:00+01'::timestamptz AS at": '[{"at":"2026-11-22 09:00:00"}]',
    "SELECT 'NaN'::float8 AS n, '{NaN,1}'::float8[] AS a": '[{"n":"NaN","a":["NaN","1"]}]',
    "SELECT '{\"k\": [1]}'::jsonb AS j": '[{"j":"{\\"k\\":[1]}"}]',
    'SELECT 1 AS "a ""b"""': '[{"a \\"b\\"":1}]',
    "SELECT interval '1 day' AS i, int4range(1, 2) AS r": '[{"i":"1 day","r":"[1,2)"}]',
    "SELECT 1 AS a WHERE false": "[]",
}


@pytest.mark.parametrize("sql", FORMATTED)
def test_formatted_records_are_as_documented(out: Answers, sql: str) -> None:
    """An array of objects by column label: numbers, text, true, false, null, arrays, and base64 for blobs."""
    assert out.formatted(sql) == FORMATTED[sql]


def test_formatted_records_take_the_options(out: Answers) -> None:
    """resultSetOptions hold for formatted records too."""
    sql = "SELECT 1 AS a, 2.0 AS b, 3.5 AS c, ARRAY[1] AS d"
    formatted = out.formatted(sql, long_as_text=True, decimal_as_number=True)
    assert formatted == '[{"a":"1","b":2.0,"c":3.5,"d":["1"]}]'


def test_formatted_records_of_many_rows(out: Answers) -> None:
    """All rows are there, in their order."""
    rows = json.loads(out.formatted("SELECT g AS n FROM generate_series(1, 1000) g"))
    assert [row["n"] for row in rows] == list(range(1, 1001))


def test_formatted_records_need_different_labels(out: Answers) -> None:
    """Two columns of one label are refused with the label and what to do, as AWS does; also without rows."""
    for sql in ("SELECT 1 AS a, 2 AS b, 3 AS a", "SELECT 1, 2 WHERE false"):
        with pytest.raises(DataError, match=r'"(a|\?column\?)" is that of 2: rename them .* with AS') as refused:
            out.formatted(sql)
        assert refused.value.kind == BAD_REQUEST


def test_formatted_records_have_the_limit(out: Answers) -> None:
    """Formatted records above the limit are refused in the same words."""
    with pytest.raises(ResultTooLarge, match="response size limit"):
        out.formatted("SELECT repeat('x', 2000) AS x", limit_bytes=KIB)
