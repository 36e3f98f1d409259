"""Statements and batches outside of a caller's transaction."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import BatchExecuteStatement, ExecuteStatement, Parameter, Place
from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, DATABASE_ERROR, DATABASE_NOT_FOUND
from emberpool_proxy.data_endpoint.session import Session

from .endpoint_pool import EndpointPool, Running, endpoint_pool, operations


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_operations") as running:
        yield running


@pytest_asyncio.fixture
async def data(pool: EndpointPool) -> AsyncIterator[Running]:
    async with operations(pool, response_bytes=64 * 1024) as running:
        await running.values("drop table if exists things")
        await running.values("create table things (id int primary key, name text)")
        yield running


def text(name: str, value: str) -> Parameter:
    return Parameter(name, {"stringValue": value})


def long(name: str, value: int) -> Parameter:
    return Parameter(name, {"longValue": value})


def null(name: str) -> Parameter:
    return Parameter(name, {"isNull": True})


def count_pipelines(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list that each pipeline of any session is added to."""
    seen: list[object] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda *given: (seen.append(given), run(*given))[1])
    return seen


async def test_statement_is_answered_in_the_form_of_the_service(data: Running) -> None:
    """A SELECT has records and no updates, an INSERT has its count, DDL counts nothing."""
    assert await data.run(ExecuteStatement("select 1 as one, 'x' as word, null as nothing")) == {
        "numberOfRecordsUpdated": 0,
        "records": [[{"longValue": 1}, {"stringValue": "x"}, {"isNull": True}]],
    }
    inserted = await data.run(ExecuteStatement("insert into things values (1, 'a'), (2, 'b')"))
    assert inserted == {"generatedFields": [], "numberOfRecordsUpdated": 2}
    assert (await data.run(ExecuteStatement("create temp table nothing ()")))["numberOfRecordsUpdated"] == 0


async def test_result_of_many_parts_is_one_answer(data: Running) -> None:
    """Rows come in parts from libpq, and all of them in their order in the answer, in both formats."""
    rows = await data.values("select generate_series(1, 1000)")
    assert rows == [[number] for number in range(1, 1001)]
    asked = ExecuteStatement("select n as id from generate_series(1, 200) n", as_json=True, includes_metadata=True)
    answer = await data.run(asked)
    assert answer["formattedRecords"].startswith('[{"id":1},{"id":2}')
    assert answer["formattedRecords"].count("id") == 200
    assert answer["columnMetadata"][0]["typeName"] == "int4"


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128])
async def test_no_row_is_lost_at_the_edge_of_a_part(data: Running, count: int) -> None:
    """Whole parts, none, and one row more or less come back complete."""
    assert len(await data.values(f"select * from generate_series(1, {count})")) == count


async def test_a_statement_that_is_repeated_survives_a_change_of_its_columns(
    data: Running, pool: EndpointPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of its columns is not seen by the caller, and costs one more try in all."""
    await data.values("insert into things values (1, 'a')")
    for _ in range(4):
        assert await data.values("select * from things") == [[1, "a"]]
    pipelines = count_pipelines(monkeypatch)
    for change, columns in (("add more int", [1, "a", True]), ("drop more, drop name", [1])):
        pool.sql(f"alter table things {change}")
        pipelines.clear()
        for _ in range(4):
            assert await data.values("select * from things") == [columns]
        assert len(pipelines) == 5


async def test_many_different_statements_are_all_answered(data: Running) -> None:
    """More statements than a session keeps prepared come and go without an error, twice each and again."""
    for _ in range(3):
        for number in range(130):
            assert await data.values(f"select {number}") == [[number]]


async def test_statement_that_forgets_what_is_prepared_breaks_no_later_one(data: Running) -> None:
    """DISCARD ALL and DEALLOCATE ALL take PostgreSQL's prepared statements away, not the endpoint's answers."""
    for forgetting in ("deallocate all", "discard all"):
        for _ in range(3):
            assert await data.values("select 7") == [[7]]
        await data.values(forgetting)
        for _ in range(3):
            assert await data.values("select 7") == [[7]]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select jsonb_build_object(:a, :b)", '{"x":"y"}'),
        ("select pg_typeof(:a)::text || :b", "texty"),
        ("select to_json(:a)::text", '"x"'),
        ("select :a || :b", "xy"),
    ],
)
async def test_strings_that_have_no_type_are_sent_as_text(data: Running, sql: str, expected: str) -> None:
    """What PostgreSQL cannot find the type of runs as text, at its first use and later."""
    for _ in range(3):
        answer = await data.run(ExecuteStatement(sql, parameters=(text("a", "x"), text("b", "y"))))
        assert answer["records"][0][0]["stringValue"] == expected


async def test_positions_and_details_of_errors_are_told(data: Running) -> None:
    """The position counts in the caller's own text; detail and SQLSTATE are there."""
    sql = "select :a, :longer_name, nothing"
    error = await data.error(ExecuteStatement(sql, parameters=(long("a", 1), long("longer_name", 2))))
    position = sql.index("nothing") + 1
    assert error.kind == DATABASE_ERROR
    assert error.message == f'ERROR: column "nothing" does not exist; Position: {position}; SQLState: 42703'
    await data.values("insert into things values (1, 'a')")
    error = await data.error("insert into things values (1, 'b')")
    assert "Detail: Key (id)=(1) already exists.; SQLState: 23505" in error.message


async def test_error_at_the_end_of_a_statement_is_told(data: Running) -> None:
    """A deferred constraint fails after the statement has answered: the caller hears of it, and nothing is kept."""
    await data.values("create table if not exists later (id int unique deferrable initially deferred)")
    for call in (
        ExecuteStatement("insert into later values (1), (1)"),
        ExecuteStatement("insert into later values (1), (1) returning id"),
        BatchExecuteStatement("insert into later values (:id)", parameter_sets=[[long("id", 1)], [long("id", 1)]]),
    ):
        assert "23505" in (await data.error(call)).message
    assert await data.values("select count(*) from later") == [[0]]


@pytest.mark.parametrize(
    ("sql", "operation"),
    [
        ("begin", "BeginTransaction"),
        (" /* hidden */ Start transaction", "BeginTransaction"),
        ("commit and chain", "CommitTransaction"),
        ("-- x\nend", "CommitTransaction"),
        ("rollback", "RollbackTransaction"),
        ("abort", "RollbackTransaction"),
        ("prepare transaction 'x'", "CommitTransaction"),
        ("commit prepared 'x'", "CommitTransaction"),
        ("rollback prepared 'x'", "CommitTransaction"),
        ("listen x", "LISTEN"),
        ("copy things from stdin", "BatchExecuteStatement"),
        ("copy (select 1) to STDOUT", "SELECT"),
    ],
)
async def test_statement_with_an_operation_of_its_own_is_refused(data: Running, sql: str, operation: str) -> None:
    """It would change the state of a connection that others use; the answer says what to use."""
    error = await data.error(sql)
    assert (error.kind, error.status) == (BAD_REQUEST, 400)
    assert operation in error.message
    assert data.sessions.sessions <= 1


async def test_two_statements_in_one_are_refused_by_postgresql(data: Running) -> None:
    """There is no way to smuggle a second statement in."""
    assert "42601" in (await data.error("select 1; drop table things")).message
    assert await data.values("select count(*) from things") == [[0]]


async def test_batch_is_all_or_nothing_and_answers_each_set(data: Running) -> None:
    """generatedFields of each set in their order; NULLs and values of any kinds among them; one error undoes all."""
    sets = [
        [long("id", 1), text("name", "a")],
        [long("id", 2), null("name")],
        [long("id", 3_000_000_000), null("name")],
    ]
    call = BatchExecuteStatement("insert into things values (:id % 100, :name) returning id, name", parameter_sets=sets)
    assert await data.run(call) == {
        "updateResults": [
            {"generatedFields": [{"longValue": 1}, {"stringValue": "a"}]},
            {"generatedFields": [{"longValue": 2}, {"isNull": True}]},
            {"generatedFields": [{"longValue": 0}, {"isNull": True}]},
        ]
    }
    again = [[long("id", 10), text("name", "new")], [long("id", 1), text("name", "twice")]]
    error = await data.error(BatchExecuteStatement("insert into things values (:id, :name)", parameter_sets=again))
    assert "23505" in error.message
    assert await data.values("select count(*) from things") == [[3]]


async def test_batch_without_sets_runs_once(data: Running) -> None:
    """No parameters is one set of none."""
    answer = await data.run(BatchExecuteStatement("insert into things values (1)"))
    assert answer == {"updateResults": [{"generatedFields": []}]}
    assert await data.values("select count(*) from things") == [[1]]


async def test_large_batch_is_one_transaction(data: Running) -> None:
    """Thousands of sets, more than any socket's buffer holds, are sent and answered without a stop."""
    sets = [[long("id", number), text("name", "x" * 500)] for number in range(4000)]
    answer = await data.run(BatchExecuteStatement("insert into things values (:id, :name)", parameter_sets=sets))
    assert len(answer["updateResults"]) == 4000
    assert await data.values("select count(*), count(distinct xmin::text) from things") == [[4000, 1]]


async def test_batch_of_untyped_strings_falls_back_to_text(data: Running) -> None:
    """The whole batch is sent again, and no set ran twice."""
    sets = [[long("id", number), text("name", str(number))] for number in range(3)]
    sql = "insert into things values (:id, jsonb_build_array(:name)::text)"
    await data.run(BatchExecuteStatement(sql, parameter_sets=sets))
    assert await data.values("select name from things order by id") == [['["0"]'], ['["1"]'], ['["2"]']]


async def test_commit_in_a_procedure_does_not_break_a_batch(data: Running) -> None:
    """A batch is one transaction, whatever it calls."""
    await data.values(
        "create or replace procedure add_thing(n int) language plpgsql as "
        "'begin insert into things values (n); commit; end'"
    )
    sets: list[list[Parameter]] = [[long("n", 1)], [long("n", 2)]]
    assert "2D000" in (await data.error(BatchExecuteStatement("call add_thing(:n)", parameter_sets=sets))).message
    assert await data.values("select count(*) from things") == [[0]]
    await data.values("call add_thing(1)")  # alone it may
    assert await data.values("select count(*) from things") == [[1]]


async def test_schema_is_of_one_call(data: Running) -> None:
    """It is the search_path of that call alone, whatever its name has in it."""
    await data.values('create schema if not exists "od""d"')
    await data.values('create table if not exists "od""d".only_there (id int)')
    there = Place(schema='od"d')
    await data.run(ExecuteStatement("insert into only_there values (1)", there))
    assert (await data.run(ExecuteStatement("select count(*) from only_there", there)))["records"]
    assert "42P01" in (await data.error("select * from only_there")).message
    error = await data.error(ExecuteStatement("select 1", Place(database="another")))
    assert error.kind == DATABASE_NOT_FOUND
    assert '"data_operations"' in error.message


@pytest.mark.parametrize(
    "sql",
    [
        "insert into things values (9)",
        "with new as (insert into things values (9) returning id) select * from new",
        "set transaction read write",
        "select set_config('transaction_read_only', 'off', false)",
        "set session characteristics as transaction read write",
        "create table mine ()",
        "call write_and_commit()",
        "do 'begin commit; insert into things values (9); end'",
    ],
)
async def test_read_only_caller_changes_nothing(data: Running, sql: str) -> None:
    """Neither directly, nor by a setting, nor in a procedure that ends the transaction."""
    await data.values(
        "create or replace procedure write_and_commit() language plpgsql as "
        "'begin commit; insert into things values (9); end'"
    )
    if not sql.startswith("set session"):
        assert (await data.error(sql, is_read_only=True)).kind == DATABASE_ERROR
    assert await data.values("select count(*) from things", is_read_only=True) == [[0]]
    assert "25006" in (await data.error("delete from things", is_read_only=True)).message


async def test_result_above_the_limit_is_an_error_and_the_statement_is_stopped(
    data: Running, pool: EndpointPool
) -> None:
    """One clear error at any size; nothing goes on in the database, and the session serves the next call."""
    for rows in (2_000, 1_000_000):
        error = await data.error(f"select repeat('x', 1000) from generate_series(1, {rows})")
        assert error.kind == BAD_REQUEST
        assert "Database returned more than the allowed response size limit" in error.message
    assert not pool.running()
    assert await data.values("select 1") == [[1]]
    assert data.sessions.sessions == 1


async def test_row_of_any_size_is_an_error(data: Running, pool: EndpointPool) -> None:
    """A row far above the limit is not answered, be its connection closed or its statement ended; the next call is."""
    error = await data.error("select repeat('x', 200000000)")
    assert "too large" in error.message or "more than the allowed response size limit" in error.message
    assert await data.values("select 1") == [[1]]


async def test_database_with_other_defaults_answers_the_same(data: Running, pool: EndpointPool) -> None:
    """Dates, intervals, time zone and literals do not depend on the database's settings."""
    changed: dict[str, Any] = {
        "datestyle": "'SQL, DMY'",
        "timezone": "'Asia/Tokyo'",
        "intervalstyle": "sql_standard",
        "standard_conforming_strings": "off",
    }
    sql = "select timestamptz '2026-01-31 12:00:00+00', interval '1 day 2 hours', 'a\\b'"
    before = await data.values(sql)
    try:
        for name, value in changed.items():
            pool.sql(f"alter database {pool.database} set {name} = {value}")
        pool.signal(signal.SIGKILL)  # it greets clients with what it has heard from its first connection
        pool.again()
        async with operations(pool) as later:
            assert await later.values(sql) == before
    finally:
        for name in changed:
            pool.sql(f"alter database {pool.database} reset {name}")
        pool.signal(signal.SIGKILL)
        pool.again()
