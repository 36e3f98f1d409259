"""columnMetadata of real results: the fourteen members, and how often the catalog is asked for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.catalog import Catalog, Remembered

from .parsed_answers import Answers, answers

TABLES = """
CREATE SCHEMA zoo;
CREATE TYPE zoo.mood AS ENUM ('sad');
CREATE DOMAIN zoo.code AS varchar(7) NOT NULL;
CREATE TABLE zoo.cats (
    id serial PRIMARY KEY, big bigserial, small smallserial, other int GENERATED ALWAYS AS IDENTITY,
    name varchar(100) NOT NULL, kind zoo.code, weight numeric(10, 5), born date, mood zoo.mood, "Odd ""name" text,
    tags text[]
);
CREATE VIEW zoo.names AS SELECT name FROM zoo.cats;
"""


@pytest.fixture(scope="module")
def zoo(postgres: EmbeddedPostgres) -> Iterator[Answers]:
    postgres.create_role_and_database("zoo_keeper", "secret", "zoo")
    with answers(postgres.conninfo(database="zoo")) as found:
        found.connection.exec_(TABLES.encode())
        assert not found.connection.error_message
        yield found


def test_metadata_is_that_of_the_real_service(zoo: Answers) -> None:
    """A serial column and a numeric one have the members that AWS's own answer for such a table has, and the schema."""
    common = {"arrayBaseColumnType": 0, "isCaseSensitive": False, "isCurrency": False, "isSigned": True}
    common |= {"schemaName": "zoo", "tableName": "cats"}
    assert zoo.metadata("SELECT id, weight AS w FROM zoo.cats") == [
        common
        | {"isAutoIncrement": True, "label": "id", "name": "id", "nullable": 0, "precision": 10, "scale": 0}
        | {"type": 4, "typeName": "serial"},
        common
        | {"isAutoIncrement": False, "label": "w", "name": "w", "nullable": 1, "precision": 10, "scale": 5}
        | {"type": 2, "typeName": "numeric"},
    ]


# type, typeName, precision, scale, isSigned, isCaseSensitive: what pgjdbc says, and AWS with it.
TYPES: dict[str, tuple[int, str, int, int, bool, bool]] = {
    "1::int2": (5, "int2", 5, 0, True, False),
    "1": (4, "int4", 10, 0, True, False),
    "1::int8": (-5, "int8", 19, 0, True, False),
    "1::oid": (-5, "oid", 10, 0, False, False),
    "1::float4": (7, "float4", 8, 8, True, False),
    "1::float8": (8, "float8", 17, 17, True, False),
    "1.5": (2, "numeric", 0, 0, True, False),
    "1::numeric(12,2)": (2, "numeric", 12, 2, True, False),
    "100::numeric(3,-2)": (2, "numeric", 3, -2, True, False),
    "true": (-7, "bool", 1, 0, False, False),
    "'a'::text": (12, "text", 2147483647, 0, False, True),
    "'a'::varchar": (12, "varchar", 2147483647, 0, False, True),
    "'a'::varchar(20)": (12, "varchar", 20, 0, False, True),
    "'a'::char(20)": (1, "bpchar", 20, 0, False, True),
    "now()": (93, "timestamptz", 35, 6, False, False),
    "now()::timestamp": (93, "timestamp", 29, 6, False, False),
    "now()::timestamp(0)": (93, "timestamp", 22, 0, False, False),
    "now()::date": (91, "date", 13, 0, False, False),
    "now()::time(3)": (92, "time", 12, 3, False, False),
    "now()::timetz": (92, "timetz", 21, 6, False, False),
    "interval '1 day'": (1111, "interval", 49, 6, False, False),
    "'1'::interval(2)": (1111, "interval", 49, 2, False, False),
    "'{}'::jsonb": (1111, "jsonb", 2147483647, 0, False, True),
    "''::bytea": (-2, "bytea", 2147483647, 0, False, True),
    "B'101'::bit(3)": (-7, "bit", 3, 0, False, False),
    "B'101'::varbit(5)": (1111, "varbit", 5, 0, False, False),
    "gen_random_uuid()": (1111, "uuid", 2147483647, 0, False, True),
    "1::money": (8, "money", 2147483647, 0, False, True),
    "ROW(1)": (2002, "record", 2147483647, 0, False, True),
    "'sad'::zoo.mood": (12, "mood", 2147483647, 0, False, True),
    "NULL::zoo.cats": (2002, "cats", 2147483647, 0, False, True),
    "'{1}'::int8[]": (2003, "_int8", 19, 0, True, False),
    "'{}'::numeric(5,2)[]": (2003, "_numeric", 5, 2, True, False),
    "'{}'::zoo.mood[]": (2003, "_mood", 2147483647, 0, False, True),
}


@pytest.mark.parametrize("expression", TYPES)
def test_metadata_of_types(zoo: Answers, expression: str) -> None:
    """Each type has its JDBC code, name, lengths and flags; an expression is of no table and may be NULL or not."""
    (column,) = zoo.metadata(f"SELECT {expression} AS label")
    members = ("type", "typeName", "precision", "scale", "isSigned", "isCaseSensitive")
    assert tuple(column[member] for member in members) == TYPES[expression]
    assert (column["nullable"], column["tableName"], column["schemaName"]) == (2, "", "")
    assert column["isCurrency"] == (column["typeName"] == "money")
    assert column["label"] == column["name"] == "label"
    assert len(column) == 14


def test_arrays_name_the_type_of_their_elements(zoo: Answers) -> None:
    """arrayBaseColumnType is the elements' JDBC code, 0 for what is no array."""
    columns = zoo.metadata("SELECT '{}'::int[], '{}'::text[], '{}'::zoo.mood[], '{}'::zoo.code[], 1")
    assert [column["arrayBaseColumnType"] for column in columns] == [4, 12, 12, 12, 0]


def test_metadata_of_tables(zoo: Answers) -> None:
    """Serial and identity columns increment themselves, NOT NULL of a column or its domain is told, names are whole."""
    columns = {column["label"]: column for column in zoo.metadata("SELECT * FROM zoo.cats")}
    serial = {name: column["typeName"] for name, column in columns.items() if column["isAutoIncrement"]}
    assert serial == {"id": "serial", "big": "bigserial", "small": "smallserial", "other": "serial"}
    assert [name for name, column in columns.items() if column["nullable"] == 0] == [*serial, "name", "kind"]
    assert columns["kind"]["typeName"] == "varchar"
    assert columns["kind"]["precision"] == 7
    assert 'Odd "name' in columns
    assert {(column["schemaName"], column["tableName"]) for column in columns.values()} == {("zoo", "cats")}


def test_metadata_of_joins_and_views(zoo: Answers) -> None:
    """Each column tells its own table; a view's column tells the view; a system column is one of the table's."""
    columns = zoo.metadata("SELECT c.name, n.name, o.relname, 1, c.ctid FROM zoo.cats c, zoo.names n, pg_class o")
    assert [column["tableName"] for column in columns] == ["cats", "names", "pg_class", "", "cats"]


def test_metadata_without_columns(zoo: Answers) -> None:
    """A result without columns has empty metadata."""
    assert zoo.metadata("SELECT") == []


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_catalog_is_asked_now_and_then(zoo: Answers) -> None:
    """A table's columns are asked for once in some seconds; a renamed one is seen after that."""
    clock = Clock()
    zoo.catalog = Catalog(table_columns=Remembered(5.0, clock=clock))
    zoo.asked.clear()
    zoo.result("CREATE TEMPORARY TABLE old_name (a int)")
    for _ in range(3):
        assert zoo.metadata("SELECT a, 1 FROM old_name")[0]["tableName"] == "old_name"
    assert len(zoo.asked) == 1
    zoo.result("ALTER TABLE old_name RENAME TO new_name")
    assert zoo.metadata("SELECT a FROM new_name")[0]["tableName"] == "old_name"
    clock.now += 5.0
    assert zoo.metadata("SELECT a FROM new_name")[0]["tableName"] == "new_name"
    assert len(zoo.asked) == 2


def test_entries_do_not_share_what_was_found(zoo: Answers) -> None:
    """Two entries of PgBouncer are two databases: the same OID may be another type and another table."""
    zoo.catalog = Catalog()
    zoo.asked.clear()
    for entry in ("main", "reports", "main", "reports"):
        zoo.metadata("SELECT mood FROM zoo.cats", Caller("function", entry))
    assert len(zoo.asked) == 2 * 2  # the type and the table, once for each entry


def test_metadata_when_the_catalog_does_not_answer(zoo: Answers) -> None:
    """In an aborted transaction the answer has metadata without tables; what was not found is not remembered."""
    zoo.catalog = Catalog()
    result = zoo.result("SELECT name FROM zoo.cats")
    zoo.connection.exec_(b"BEGIN")
    zoo.connection.exec_(b"SELECT 1/0")
    aborted: Any = zoo.result
    zoo.result = lambda sql, values=(): result  # type: ignore[method-assign]  # the result came before the error
    try:
        (column,) = zoo.metadata("")
        assert (column["tableName"], column["nullable"], column["typeName"]) == ("", 2, "varchar")
    finally:
        zoo.result = aborted  # type: ignore[method-assign]
        zoo.connection.exec_(b"ROLLBACK")
    assert zoo.metadata("SELECT name FROM zoo.cats")[0]["tableName"] == "cats"


def test_only_so_much_is_remembered() -> None:
    """Of too many the oldest is forgotten, and what is old is not given."""
    clock = Clock()
    remembered: Remembered[int, str] = Remembered(10.0, most=3, clock=clock)
    for key in range(5):
        remembered.add("main", {key: str(key)})
    remembered.add("main", {2: "again"})
    remembered.add("main", {5: "5"})
    assert len(remembered) == 3
    assert [remembered.get("main", key) for key in range(6)] == [None, None, "again", None, "4", "5"]
    assert remembered.get("other", 2) is None
    clock.now += 10.0
    assert remembered.get("main", 2) is None
