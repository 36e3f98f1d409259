"""Named parameters are found by PostgreSQL's own lexical rules, and nothing else of a statement is touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import pq

from emberpool_local.postgres.program import wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import Parameter
from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, DataError
from emberpool_proxy.data_endpoint.sql_text import CompiledSql, compile_sql

from .bound_statements import Refused, run, session, values_of

REPLACED = {
    "select :a": "select $1",
    "select :a, :b, :a": "select $1, $2, $1",
    "select:a": "select $1",
    "where x=:a and y>=:b": "where x=$1 and y>=$2",
    "values (:a,:b)": "values ($1,$2)",
    "select :a::uuid, :b ::text": "select $1::uuid, $2 ::text",
    "select f(x := :a, y :=:b)": "select f(x := $1, y :=$2)",
    "select j @> :a and j ?| :b and j ? :a": "select j @> $1 and j ?| $2 and j ? $1",
    "select -:a, 1-:b": "select -$1, 1-$2",
    "select (:a).b, :a.b": "select ($1).b, $1.b",
    "where x in (:1, :2) limit :10": "where x in ($1, $2) limit $3",
    "select :größe, :a_1": "select $1, $2",
    "select :A, :a": "select $1, $2",
    "select array[:a, :b], array[x, :a]": "select array[$1, $2], array[x, $1]",
    "select x[:a], x[:a:2], x[1: :a], x[:a : :b]": "select x[$1], x[$1:2], x[1: $1], x[$1 : $2]",
    "select x[case when :a then 1 else :b end]": "select x[case when $1 then 1 else $2 end]",
    "select x[y and :a], x[not :a]": "select x[y and $1], x[not $1]",
    "select x[f(y :a)]": "select x[f(y $1)]",
    "select json_object(:a : :b, 'k' value :a)": "select json_object($1 : $2, 'k' value $1)",
    "select json_object(:a value :b)": "select json_object($1 value $2)",
    "select $x$ :a $x$ || :a": "select $x$ :a $x$ || $1",
    "select a$b$c, :a, d$b$e": "select a$b$c, $1, d$b$e",
    "select 1 /* /* :b */ :b */ + :a": "select 1 /* /* :b */ :b */ + $1",
    "select 1 -- ' :b\n, :a": "select 1 -- ' :b\n, $1",
    "select 1 -- :b\r, :a": "select 1 -- :b\r, $1",
    "select ':b''' , :a": "select ':b''' , $1",
    "select '\\', :a, '": "select '\\', $1, '",
    "select E'\\' :b', :a": "select E'\\' :b', $1",
    "select e'x' -- it's\n  ' \\' :b', :a": "select e'x' -- it's\n  ' \\' :b', $1",
    'select ":b"" :b", :a': 'select ":b"" :b", $1',
    "select U&'\\' :a": "select U&'\\' $1",
    "where (:a is null or x = :a)": "where ($1::text is null or x = $2)",
    "where :a\n Is  Not NULL and not :a isnull": "where $1::text\n Is  Not NULL and not $1::text isnull",
    "select x = :a is null, f(:a) is null, :b is nullable": "select x = $1 is null, f($1) is null, $2 is nullable",
    "select x.floor :a is null": "select x.floor $1 is null",
    "select fie'x\\', :a": "select fie'x\\', $1",
}
UNTOUCHED = [
    "select x::a, x :: b, '12:a'",
    "select x[1:a], x[a:b], x[f(1):a], x[(1):a], x[y[1]:a], x['1':a], x[$1:a], x[\"y\":a]",
    "select x[1:2], x[2:1]",
    "select x[zone:a], x[value:a]",
    "select json_object('k':a, b:a, value:a), JSON_OBJECTAGG /* */ (k:a)",
    "select $$ :a $$, $a$ :a $$ :a $b$ :a $a$",
    "select ' :a",
    'select " :a',
    "select E'\\' :a",
    "select $x$ :a $X$",
    "select 1 /* /* */ :a",
    "select : a, :zz, :aa, :a$",
    "select B':a', x':a', N':a', u&':a', U&\":a\"",
    "select f(x := 1)",
]
ENDLESS = [
    "$a",
    "$a$ ",
    "\n",
    " ",
    "--\n",
    "E'a'\n",
    "/*",
    "a$b$",
    "e'\\",
    "''",
    ":a   ",
    ":a is  not  ",
    "and\n",
    "[:",
]
NAMES = frozenset({"a", "b", "1", "2", "10", "größe", "a_1", "A"})
WORDS = {
    "select 1": ("SELECT",),
    "  ;; /* a /* b */ */ -- c\n (Commit) and": ("COMMIT",),
    "rollback work/**/to savepoint x": ("ROLLBACK", "WORK", "TO", "SAVEPOINT"),
    "COMMIT;prepared x": ("COMMIT",),
    "end": ("END",),
    "": (),
    "'commit'": (),
    "/* commit": (),
    '"commit" 1': (),
}


@pytest.fixture(scope="module")
def connection(postgres: EmbeddedPostgres) -> Iterator[pq.PGconn]:
    with session(postgres) as opened:
        yield opened


def compiled(sql: str, *names: str) -> CompiledSql:
    return compile_sql(sql, frozenset(names))


def string(name: str, value: str) -> Parameter:
    return Parameter(name, {"stringValue": value})


def long(name: str, value: int) -> Parameter:
    return Parameter(name, {"longValue": value})


@pytest.mark.parametrize("sql", REPLACED)
def test_supplied_name_becomes_a_number(sql: str) -> None:
    """Where a parameter can stand and its name was supplied, PostgreSQL gets a number, the same for the same name."""
    assert compile_sql(sql, NAMES).text.decode() == REPLACED[sql]


def test_names_are_in_the_order_of_their_numbers() -> None:
    """The n-th name is the one of $n, and a name that was supplied in vain has no number, as with AWS."""
    assert compiled("select :b, :a, :b", "a", "b", "unused").names == ("b", "a")


@pytest.mark.parametrize("sql", UNTOUCHED)
def test_what_is_no_parameter_stays_as_it_is(sql: str) -> None:
    """Constants, comments, casts, slices, JSON keys and whatever is not terminated reach PostgreSQL as they were."""
    assert compile_sql(sql, NAMES).text.decode() == sql


@pytest.mark.parametrize("sql", WORDS)
def test_first_words_are_those_that_postgresql_sees_first(sql: str) -> None:
    """A transaction command can't hide behind comments, empty statements or brackets."""
    assert (compiled(sql).words, compiled(sql).first_word) == (WORDS[sql], next(iter(WORDS[sql]), ""))


@pytest.mark.parametrize(
    ("sql", "says"),
    [("select '\0'", "NUL"), ("select '\ud800', :a", "surrogate"), ("select $1, :a", r"both named parameters and \$1")],
)
def test_text_that_cannot_be_sent_is_a_bad_request(sql: str, says: str) -> None:
    """What PostgreSQL can't take, or would bind to the wrong value, is refused before anything is sent."""
    with pytest.raises(DataError, match=says) as refused:
        compiled(sql, "a")
    assert refused.value.kind == BAD_REQUEST


def test_numbers_of_postgresql_stay_when_no_name_is_replaced() -> None:
    """PREPARE and functions with SQL bodies have numbers of their own."""
    assert compiled("prepare p as select $1, ':a'", "a").text == b"prepare p as select $1, ':a'"


def test_statement_is_compiled_once_unless_it_is_huge() -> None:
    """The same statement with the same names is looked up; huge ones are not kept, so that memory is bounded."""
    assert compiled("select :a", "a", "b") is compiled("select :a", "b", "a")
    assert compiled("select :a", "a") is not compiled("select :a", "a", "b")
    huge = f"select '{'x' * 10_000}', :a"
    assert compiled(huge, "a") is not compiled(huge, "a")


@pytest.mark.parametrize("piece", ENDLESS)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    """Half a million characters of what makes a search start again and again: a quadratic one would not end in time."""
    sql = f"{piece}:a E'a'{piece * (500_000 // len(piece))}"
    assert compiled(sql, "a").source == sql


def test_quoted_names_reach_the_server_as_text(connection: pq.PGconn) -> None:
    """Every kind of constant comes back with the colons that it had, beside a parameter that was replaced."""
    sql = (
        "select ':a', 'it''s :a', E'\\':a\\\\', U&':a\\0041', $$:a$$, $t$$$:a$t$, ':'\n':a', e'\\''\n'\\':a',"
        ' /* \':a */ :a, \':a\'::text, "x:a" from (select 1 as "x:a") s -- :a'
    )
    expected = [":a", "it's :a", "':a\\", ":aA", ":a", "$$:a", "::a", "'':a", "1", ":a", "1"]
    assert values_of(connection, sql, string("a", "1")) == expected


def test_slices_and_parameters_stand_side_by_side(connection: pq.PGconn) -> None:
    """Bounds that look like Drizzle's names are bounds after a bound, and parameters where a bound may begin."""
    sql = (
        "select (x)[1:2], (x)[2:n], (x)[:2], (x)[:2:3], (x)[1: :2] from (select '{5,6,7}'::int[], 3, :1::int) s (x, n)"
    )
    assert values_of(connection, sql, long("1", 1), long("2", 2), long("n", 9)) == [
        "{5,6}",
        "{6,7}",
        "6",
        "{6,7}",
        "{5,6}",
    ]


def test_json_objects_keep_their_colons() -> None:
    """A column after JSON_OBJECT's colon is a column, even of a parameter's name; with a second colon it is one."""
    sql = "select json_object('k':a, 'l': :a, 'm' value :a) from (select 'column') s (a)"
    with EmbeddedPostgres(program=wheel_postgres()) as new_enough, session(new_enough) as connection:
        assert values_of(connection, sql, string("a", "x")) == ['{"k" : "column", "l" : "x", "m" : "x"}']


@pytest.mark.parametrize("value", [{"isNull": True}, {"stringValue": "7"}, {"longValue": 7}])
def test_filter_is_optional_for_any_type(connection: pq.PGconn, value: dict[str, object]) -> None:
    """The usual optional filter needs no cast, be its value NULL, a number, or text that becomes one."""
    sql = "select count(*) from (values (7), (8)) s (id) where (:x is null or id = :x)"
    assert values_of(connection, sql, Parameter("x", value)) == ["2" if "isNull" in value else "1"]


@pytest.mark.parametrize(
    "sql", ["select :long_name, 'é', :b, nowhere", "nowhere", "select:b, nowhere", "select nowhere, :b"]
)
def test_position_of_an_error_is_in_what_the_user_wrote(connection: pq.PGconn, sql: str) -> None:
    """PostgreSQL's position, in characters of the rewritten text, is translated to the user's text."""
    with pytest.raises(Refused) as refused:
        run(connection, sql, string("long_name", "x"), string("b", "y"))
    position = compiled(sql, "long_name", "b").position_in_source(refused.value.position)
    assert sql[position - 1 :].startswith("nowhere")


@pytest.mark.parametrize("sql", REPLACED)
def test_every_position_is_translated(sql: str) -> None:
    """Each character of the rewritten text is at the same one of the user's, those of a number at its colon."""
    statement = compile_sql(sql, NAMES)
    text = statement.text.decode()
    ends = [start for start, _, _ in statement.stretches[1:]]
    numbers = {
        position
        for (start, _, is_copy), end in zip(statement.stretches, ends, strict=False)
        for position in range(start, end)
        if not is_copy
    }
    for index, character in enumerate(text):
        expected = ":" if index in numbers else character
        assert sql[statement.position_in_source(index + 1) - 1] == expected


def test_position_at_a_parameter_is_that_of_its_colon(connection: pq.PGconn) -> None:
    """An error at a parameter points at the colon of its name, whatever was put before the number."""
    sql = "select :first:second"
    with pytest.raises(Refused) as refused:
        run(connection, sql, string("first", "1"), string("second", "2"))
    assert refused.value.state == "42601"
    assert compiled(sql, "first", "second").position_in_source(refused.value.position) == sql.index(":second") + 1


def test_name_without_a_value_is_told(connection: pq.PGconn) -> None:
    """A syntax error at a name that was not supplied can be answered with the name; any other can't."""
    sql = "select :given, :forgotten"
    with pytest.raises(Refused) as refused:
        run(connection, sql, long("given", 1))
    assert refused.value.state == "42601"
    assert compiled(sql, "given").missing_name(refused.value.position) == "forgotten"
    assert compiled(sql, "given").missing_name(1) == ""
    assert compiled("select :given :given", "given").missing_name(11) == ""
