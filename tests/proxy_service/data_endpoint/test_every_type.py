"""Every type of the real PostgreSQL comes back as a Field that boto3 accepts; of a new type this asks for a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emberpool_local.postgres.program import wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.types import BUILT_IN, Kind

from .parsed_answers import Answers, answers
from .type_samples import value_of

FIRST_OF_INITDB = 10_000  # types below have the same OID everywhere
LONG, DOUBLE, BOOLEAN, STRING = "longValues", "doubleValues", "booleanValues", "stringValues"
MEMBERS = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), ("longValue", LONG, int)),
    **dict.fromkeys(("float4", "float8"), ("doubleValue", DOUBLE, float)),
    "bool": ("booleanValue", BOOLEAN, "t".__eq__),
}
USERS_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy, {really}');
CREATE TYPE pair AS (number int, words text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN more_positive AS positive;
CREATE DOMAIN numbers AS int[];
CREATE DOMAIN moody AS mood;
CREATE TYPE mood_range AS RANGE (SUBTYPE = mood, MULTIRANGE_TYPE_NAME = mood_ranges);
CREATE TYPE by_colon;
CREATE FUNCTION by_colon_in(cstring) RETURNS by_colon AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION by_colon_out(by_colon) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE by_colon (INPUT = by_colon_in, OUTPUT = by_colon_out, LIKE = text, DELIMITER = ':');
CREATE TABLE things (id int, mood mood);
"""


@pytest.fixture(scope="module", params=["found", "of the wheel"])
def every(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Iterator[Answers]:
    """Answers from the PostgreSQL of this machine, and from the newest that there is as a wheel."""
    if request.param == "found":
        with answers(postgres.conninfo()) as found:
            yield found
        return
    with EmbeddedPostgres(program=wheel_postgres()) as newest, answers(newest.conninfo()) as found:
        yield found


@pytest.fixture(scope="module")
def own(postgres: EmbeddedPostgres) -> Iterator[Answers]:
    """Answers from a database with users' types."""
    postgres.create_role_and_database("type_owner", "secret", "users_types")
    with answers(postgres.conninfo(database="users_types")) as found:
        found.connection.exec_(USERS_TYPES.encode())
        assert not found.connection.error_message
        yield found


def base_types(every: Answers) -> list[str]:
    """Names of all types that are not arrays, pseudo-types or rows of tables."""
    rows = every.records(
        "SELECT typname FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND typoutput <> 'array_out'::regproc"
        " AND typnamespace = 'pg_catalog'::regnamespace ORDER BY 1"
    )
    names = [row[0]["stringValue"] for row in rows]
    if "--with-libxml" not in every.text("setting FROM pg_config WHERE name = 'CONFIGURE'"):
        names.remove("xml")  # it takes no values in this server
    return names


def expected(name: str, text: str) -> dict[str, Any]:
    if name == "bytea":
        return {"blobValue": bytes.fromhex(text.removeprefix("\\x"))}
    if name not in MEMBERS:
        return {"stringValue": normal(name, text)}
    member, _, read = MEMBERS[name]
    return {member: read(text)}


def normal(name: str, text: str) -> str:
    """The text with which the service answers; everything but these three is as PostgreSQL writes it."""
    if name == "timestamptz":
        return text.removesuffix("+00")
    return {"json": '{"a":[1,"x y"]}', "jsonb": '{"a":[1,"x y"],"b":{"c":null}}'}.get(name, text)


def test_table_of_built_in_types_is_the_servers(every: Answers) -> None:
    """Each type that we know by its OID has that OID, name, element and delimiter in the server; with it every type
    that a column can have is known without a query, but for what initdb made."""
    rows = every.records(
        "SELECT t.oid, t.typname, e.oid, e.typdelim FROM pg_type t"
        " LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typoutput = 'array_out'::regproc"
        f" WHERE t.oid < {FIRST_OF_INITDB} AND t.typtype <> 'p' AND t.typrelid = 0 AND t.typname !~ '^_?pg_[^lns]'"
        " AND NOT EXISTS (SELECT FROM pg_type r WHERE r.oid = t.typelem AND r.typrelid <> 0)"
    )
    newer = {"oid8", "_oid8", "regdatabase", "_regdatabase"}
    for oid, name, element, delimiter in rows:
        if name["stringValue"] in newer:
            continue
        known = BUILT_IN[oid["longValue"]]
        assert known.name == name["stringValue"]
        assert (known.element.oid if known.element else None) == element.get("longValue")
        if known.element:
            assert known.delimiter == delimiter["stringValue"]


def test_every_base_type_has_its_field(every: Answers) -> None:
    """A value of every type and its NULL come back as the member that AWS gives them, the rest as PostgreSQL's text."""
    for name in base_types(every):
        value = value_of(name)
        assert every.field(f'NULL::pg_catalog."{name}"') == {"isNull": True}, name
        if value is not None:
            assert every.field(value) == expected(name, every.text(value)), name


def test_arrays_of_every_type_have_their_form(every: Answers) -> None:
    """Arrays of every type, with NULLs, empty, of two dimensions and with other lower bounds, are arrayValues."""
    for name in base_types(every):
        value = value_of(name)
        if value is None or not has_arrays(every, name):
            continue
        member, read = (MEMBERS[name][1:]) if name in MEMBERS else (STRING, lambda text, name=name: normal(name, text))
        text = every.text(value)
        items = [read(text), None, read(text)]
        one = f"ARRAY[{value}, NULL, {value}]"
        array = f'pg_catalog."{name}"[]'
        assert every.field(one) == {"arrayValue": {member: items}}, name
        assert every.field(f"'{{}}'::{array}") == {"arrayValue": {member: []}}, name
        assert every.field(f"ARRAY[{one}, {one}]") == {"arrayValue": {"arrayValues": [{member: items}] * 2}}, name
        bounded = every.field(f"('[5:7]=' || ({one})::text)::{array}")
        assert bounded == {"arrayValue": {member: items}}, name


def has_arrays(every: Answers, name: str) -> bool:
    return every.field(f"typarray <> 0 FROM pg_type WHERE typname = '{name}'") == {"booleanValue": True}


def test_every_type_that_initdb_made_is_read(every: Answers) -> None:
    """Domains, rows of catalogs and arrays of both, whose OIDs differ between servers, come back too."""
    names = every.records(
        "SELECT typname, typtype FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace"
        " WHERE nspname = 'information_schema' AND typtype = 'd' OR typname IN ('pg_class', 'pg_type')"
    )
    assert len(names) >= 7
    for name, typtype in names:
        schema = "information_schema" if typtype["stringValue"] == "d" else "pg_catalog"
        written = f'{schema}."{name["stringValue"]}"'
        assert every.field(f"NULL::{written}[]") == {"isNull": True}
        assert every.field(f"ARRAY[NULL::{written}]")["arrayValue"] in ({LONG: [None]}, {STRING: [None]})
    row = every.field("c FROM pg_class c WHERE relname = 'pg_class'")["stringValue"]
    assert row.startswith("(")
    assert ",pg_class," in row


@pytest.mark.parametrize("name", ["record", "cstring", "void", "anyarray", "pg_node_tree"])
def test_pseudo_types_are_text(every: Answers, name: str) -> None:
    """What functions can return beside values of types comes back as its text."""
    if name == "anyarray":
        every.connection.exec_(b"ANALYZE pg_catalog.pg_class")
    text = every.field(value_of(name) or "")["stringValue"]
    assert text == {"record": '(1,"a b",)', "cstring": "a text", "void": ""}.get(name, text)
    assert text or name == "void"


def test_arrays_of_records_are_texts(every: Answers) -> None:
    """Rows in arrays keep their text form, whatever quotes it needs."""
    field = every.field("""ARRAY[ROW(1, 'a "b", c'), ROW(2, '\\')]""")
    assert field == {"arrayValue": {STRING: ['(1,"a ""b"", c")', '(2,"\\\\")']}}


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ("'happy, {really}'::mood", {"stringValue": "happy, {really}"}),
        ("ARRAY['happy, {really}', NULL]::mood[]", {"arrayValue": {STRING: ["happy, {really}", None]}}),
        ("5::positive", {"longValue": 5}),
        ("ARRAY[5, NULL]::positive[]", {"arrayValue": {LONG: [5, None]}}),
        ("ARRAY[[5], [6]]::more_positive[]", {"arrayValue": {"arrayValues": [{LONG: [5]}, {LONG: [6]}]}}),
        ("'{1,2}'::numbers", {"arrayValue": {LONG: [1, 2]}}),
        ("""'{"{1,2}","{}",NULL}'::numbers[]""", {"arrayValue": {STRING: ["{1,2}", "{}", None]}}),
        ("'{sad}'::moody[]", {"arrayValue": {STRING: ["sad"]}}),
        ("ROW(1, 'a b')::pair", {"stringValue": '(1,"a b")'}),
        ("ARRAY[ROW(1, 'a b')::pair]", {"arrayValue": {STRING: ['(1,"a b")']}}),
        ("'[sad,\"happy, {really}\")'::mood_range", {"stringValue": '[sad,"happy, {really}")'}),
        ("'{[sad,)}'::mood_ranges", {"stringValue": "{[sad,)}"}),
        ("ARRAY['[sad,)'::mood_range]", {"arrayValue": {STRING: ["[sad,)"]}}),
        ("'a:b'::by_colon", {"stringValue": "a:b"}),
        ("ARRAY['a,b'::by_colon, 'c:d', NULL]", {"arrayValue": {STRING: ["a,b", "c:d", None]}}),
        ("things FROM (VALUES (1)) v LEFT JOIN things ON true", {"isNull": True}),
        ("ROW(1, 'sad')::things", {"stringValue": "(1,sad)"}),
    ],
)
def test_users_types_are_read(own: Answers, expression: str, field: dict[str, Any]) -> None:
    """Enums, domains, rows, ranges and arrays of each, also with a delimiter of their own, come back."""
    assert own.field(expression) == field


def test_a_type_is_asked_for_once(own: Answers) -> None:
    """The catalog is asked when a user's type is first seen, and never for built-in ones."""
    own.field("'sad'::mood")
    before = len(own.asked)
    for _ in range(3):
        own.fields("SELECT 'sad'::mood, ARRAY[ROW(1, 'b')], now(), 1.5")
    assert len(own.asked) == before


def test_unknown_types_are_text_when_the_catalog_does_not_answer(own: Answers) -> None:
    """In an aborted transaction nothing can be looked up: the answer is text, and the next look-up is not spoilt."""
    result = own.result("SELECT ARRAY['sad']::mood[], 'sad'::mood, 1")
    own.catalog.types._found.clear()
    own.connection.exec_(b"BEGIN")
    own.connection.exec_(b"SELECT 1/0")
    try:
        (fields,) = own.records_of(result)
    finally:
        own.connection.exec_(b"ROLLBACK")
    assert fields == [{"stringValue": "{sad}"}, {"stringValue": "sad"}, {"longValue": 1}]
    assert own.records_of(result)[0][0] == {"arrayValue": {STRING: ["sad"]}}


def test_a_type_that_became_another_is_still_read(own: Answers) -> None:
    """A remembered OID that is another type now (the database behind the entry was replaced) fails no answer."""
    wrong = BUILT_IN[1007]  # int4[]
    text = own.result("SELECT 'happy, {really}'::mood, '{sad}'::mood[], 1.5::float8")
    own.catalog.types.add("main", {text.ftype(0): wrong, text.ftype(1): wrong})
    try:
        (fields,) = own.records_of(text)
    finally:
        own.catalog.types._found.clear()
    assert fields == [{"stringValue": "happy, {really}"}, {"stringValue": "{sad}"}, {"doubleValue": 1.5}]


def test_text_that_is_no_utf8_is_shown_as_far_as_it_can_be(postgres: EmbeddedPostgres) -> None:
    """Where a statement has changed client_encoding, what is no UTF-8 becomes the replacement character."""
    with answers(postgres.conninfo()) as found:
        result = "SELECT 'a' || chr(246), 7, 1.5::float8, ARRAY['b' || chr(246)], '\\x00ff'::bytea, 'plain'"
        found.result("SET client_encoding TO latin1")
        fields = found.fields(result)
    assert fields == [
        {"stringValue": "a\ufffd"},
        {"longValue": 7},
        {"doubleValue": 1.5},
        {"stringValue": "{b\ufffd}"},
        {"blobValue": b"\x00\xff"},
        {"stringValue": "plain"},
    ]


def test_text_is_the_kind_of_everything_else() -> None:
    """Types without a member of their own in the service's model are read as text."""
    own_members = {column.name for column in BUILT_IN.values() if column.kind not in (Kind.TEXT, Kind.ARRAY)}
    assert own_members == {*MEMBERS, "bytea", "numeric", "json", "jsonb", "timestamptz"}
