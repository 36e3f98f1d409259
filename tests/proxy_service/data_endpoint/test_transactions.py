"""Transactions of callers: leases that end, and never are lost without a word."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import (
    BatchExecuteStatement,
    BeginTransaction,
    CommitTransaction,
    ExecuteStatement,
    Parameter,
    Place,
    RollbackTransaction,
)
from emberpool_proxy.data_endpoint.errors import (
    BAD_REQUEST,
    DATABASE_ERROR,
    SERVICE_UNAVAILABLE,
    THROTTLED,
    TRANSACTION_NOT_FOUND,
)
from emberpool_proxy.data_endpoint.leases import LeaseLimits, owner_of
from emberpool_proxy.data_endpoint.steps import Step

from .endpoint_pool import EndpointPool, Running, endpoint_pool, fact, operations

ADDRESS = ("10.0.0.7", 8443)
LIMITS = LeaseLimits(queue_seconds=0.5, look_seconds=0.05)


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_transactions", idle_transaction_seconds=3) as running:
        yield running


@pytest_asyncio.fixture
async def data(pool: EndpointPool) -> AsyncIterator[Running]:
    async with operations(pool, limits=LIMITS, address=ADDRESS, response_bytes=64 * 1024) as running:
        await running.values("drop table if exists things")
        await running.values("create table things (id int primary key, name text)")
        yield running


async def begin(data: Running, schema: str = "", **caller: Any) -> str:
    answer = await data.run(BeginTransaction(Place(schema=schema)), **caller)
    return str(answer["transactionId"])


async def count(data: Running) -> int:
    return int((await data.values("select count(*) from things"))[0][0])


async def test_what_was_done_is_there_after_the_commit_and_not_before(data: Running) -> None:
    """Others see it only then; the answers are the service's words; the id then is of no transaction."""
    transaction = await begin(data)
    await data.values("insert into things values (1)", transaction)
    assert await data.values("select count(*) from things", transaction) == [[1]]
    assert await count(data) == 0
    assert await data.run(CommitTransaction(transaction)) == {"transactionStatus": "Transaction Committed"}
    assert await count(data) == 1
    error = await data.error(CommitTransaction(transaction))
    assert (error.kind, error.status) == (TRANSACTION_NOT_FOUND, 404)
    assert "it was committed" in error.message


async def test_rollback_undoes_all(data: Running) -> None:
    """Nothing is left of a transaction that was rolled back, batches included; its session serves others."""
    transaction = await begin(data)
    sets = [[Parameter("id", {"longValue": number})] for number in range(3)]
    place = Place(transaction_id=transaction)
    await data.run(BatchExecuteStatement("insert into things values (:id)", place, sets))
    assert await data.values("select count(*) from things", transaction) == [[3]]
    assert await data.run(RollbackTransaction(transaction)) == {"transactionStatus": "Rollback Complete"}
    assert await count(data) == 0
    assert (data.operations.open_transactions, data.sessions.sessions) == (0, 1)


async def test_id_tells_its_task_and_nothing_else(data: Running) -> None:
    """The address is in it, 128 bits are not to be guessed, and it fits the model's 192 characters."""
    first, second = await begin(data), await begin(data)
    assert owner_of(first) == owner_of(second) == ADDRESS
    assert len(first.partition(".")[0]) == 22
    assert first.partition(".")[0] != second.partition(".")[0]
    assert len(first) <= 192
    for wrong in ("", "x", "x.!", "x.eA", "a.b.c", "ü.ü"):
        assert owner_of(wrong) is None


@pytest.mark.parametrize("call", [CommitTransaction, RollbackTransaction])
async def test_transaction_is_of_its_caller_only(data: Running, call: Any) -> None:
    """Somebody else's id is as unknown as one that never was; the owner's transaction goes on."""
    transaction = await begin(data)
    error = await data.error(call(transaction), name="somebody")
    assert error.kind == TRANSACTION_NOT_FOUND
    assert (await data.error(call("no-such-id"))).message.replace("no-such-id", transaction) == error.message
    assert (await data.error("select 1", transaction, name="somebody")).kind == TRANSACTION_NOT_FOUND
    assert await data.values("select 1", transaction) == [[1]]


async def test_failed_statement_aborts_the_transaction_and_the_next_answers_say_so(data: Running) -> None:
    """As PostgreSQL has it: 25P02 until it ends; a commit then is an error, and has committed nothing."""
    transaction = await begin(data)
    await data.values("insert into things values (1)", transaction)
    assert "42703" in (await data.error("select nothing", transaction)).message
    assert "25P02" in (await data.error("select 1", transaction)).message
    error = await data.error(CommitTransaction(transaction))
    assert error.kind == DATABASE_ERROR
    assert "25P02" in error.message
    assert await count(data) == 0
    assert (await data.error("select 1", transaction)).kind == TRANSACTION_NOT_FOUND


async def test_savepoints_of_the_caller_work(data: Running) -> None:
    """A caller can go back to a savepoint after an error, and goes on."""
    transaction = await begin(data)
    await data.values("insert into things values (1)", transaction)
    await data.values("savepoint here", transaction)
    await data.error("insert into things values (1)", transaction)
    await data.values("rollback to savepoint here", transaction)
    await data.values("release here", transaction)
    await data.run(CommitTransaction(transaction))
    assert await count(data) == 1


async def test_string_without_a_type_does_not_abort_the_transaction(data: Running) -> None:
    """What PostgreSQL cannot find the type of is tried as text, and the transaction is as it was."""
    transaction = await begin(data)
    place = Place(transaction_id=transaction)
    strings = (Parameter("a", {"stringValue": "x"}),)
    await data.values("insert into things values (1)", transaction)
    for _ in range(2):
        call = ExecuteStatement("select jsonb_build_array(:a), 'in a lease'", place, strings)
        assert (await data.run(call))["records"][0][0] == {"stringValue": '["x"]'}
    sets = [strings, strings]
    await data.run(BatchExecuteStatement("select jsonb_build_object(:a, 1)", place, sets))
    error = await data.error(ExecuteStatement("select jsonb_build_array(:a, 1 / 0)", place, strings))
    assert "22012" in error.message
    assert "25P02" in (await data.error("select 1", transaction)).message


async def test_result_above_the_limit_leaves_the_transaction_open(data: Running) -> None:
    """Whether its rows are a little or far too large: the statement has run, and the transaction goes on."""
    transaction = await begin(data)
    for number, rows in enumerate((1_000, 20_000)):
        sql = (
            f"insert into things select {number} * 100000 + g, 'x' from generate_series(1, {rows}) g "
            "returning repeat('x', 100)"
        )
        error = await data.error(sql, transaction)
        assert error.kind == BAD_REQUEST
        assert "response size limit" in error.message
    # Had it been kept, the process would have grown by all of it; had it been stopped, the transaction were aborted.
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await data.error("select repeat('x', 1000) from generate_series(1, 300000)", transaction)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest < 100_000  # KiB
    one_row = await data.error("select repeat('x', 5000000)", transaction)
    assert "response size limit" in one_row.message
    await data.run(CommitTransaction(transaction))
    assert await count(data) == 21_000


async def test_schema_holds_for_the_transaction_or_for_one_call(data: Running) -> None:
    """That of BeginTransaction for all calls, that of a call for this call, and the caller's own setting stays."""
    transaction = await begin(data, schema="pg_catalog")
    here = "select current_setting('search_path')"
    assert await data.values(here, transaction) == [['"pg_catalog"']]
    other = ExecuteStatement(here, Place(schema="public", transaction_id=transaction))
    assert (await data.run(other))["records"] == [[{"stringValue": '"public"'}]]
    assert await data.values(here, transaction) == [['"pg_catalog"']]
    await data.values("set local search_path to public, pg_temp", transaction)
    await data.run(other)
    assert await data.values(here, transaction) == [["public, pg_temp"]]


async def test_read_only_caller_gets_a_read_only_transaction(data: Running) -> None:
    """No statement of it can make it another."""
    transaction = await begin(data, is_read_only=True)
    assert "25001" in (await data.error("set transaction read write", transaction, is_read_only=True)).message
    transaction = await begin(data, is_read_only=True)
    assert "25006" in (await data.error("insert into things values (1)", transaction, is_read_only=True)).message


async def test_two_calls_at_once_run_one_after_the_other(data: Running) -> None:
    """A short one is waited for; behind a long one the answer says that the transaction is in use."""
    transaction = await begin(data)
    short = [data.values(f"select {number} from pg_sleep(0.02)", transaction) for number in range(5)]
    assert await asyncio.gather(*short) == [[[number]] for number in range(5)]
    long = asyncio.ensure_future(data.values("select 1 from pg_sleep(1.5)", transaction))
    await asyncio.sleep(0)
    error = await data.error("select 1", transaction)
    assert error.kind == BAD_REQUEST
    assert "still running a query" in error.message
    assert await long == [[1]]
    assert await data.values("select 2", transaction) == [[2]]


async def test_too_many_calls_at_once_on_one_transaction_are_refused(pool: EndpointPool) -> None:
    """The line has an end."""
    async with operations(pool, limits=LeaseLimits(queue_seconds=10)) as data:
        transaction = await begin(data)
        calls = [data.values("select 1 from pg_sleep(0.01)", transaction) for _ in range(30)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, list) for answer in answers) == 17
        assert await data.values("select 2", transaction) == [[2]]


async def test_idle_transaction_outlives_pgbouncers_timeout(data: Running, pool: EndpointPool) -> None:
    """PgBouncer would end it after three seconds here: it does not, in an aborted transaction neither."""
    limits = LeaseLimits(keep_alive_seconds=0.3, look_seconds=0.05)
    async with operations(pool, limits=limits) as kept:
        good, aborted = await begin(kept), await begin(kept)
        await kept.values("insert into things values (1)", good)
        await kept.error("select nothing", aborted)
        await asyncio.sleep(4.5)  # of PgBouncer's clock: nothing can be waited for
        assert await kept.values("select count(*) from things", good) == [[1]]
        assert "25P02" in (await kept.error("select 1", aborted)).message
        await kept.run(CommitTransaction(good))
    assert await count(data) == 1


async def test_transaction_that_pgbouncer_has_ended_is_told_as_such(data: Running, pool: EndpointPool) -> None:
    """Without the keep-alive the timeout ends it: the caller hears that it is gone and why."""
    async with operations(pool, limits=LeaseLimits(keep_alive_seconds=60)) as neglected:
        transaction = await begin(neglected)
        await neglected.values("insert into things values (1)", transaction)
        await fact("PgBouncer kept it", lambda: not neglected.operations.open_transactions)
        error = await neglected.error(CommitTransaction(transaction))
        assert error.kind == TRANSACTION_NOT_FOUND
        assert "connection to the database was lost" in error.message
    assert await count(data) == 0


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (LeaseLimits(idle_seconds=0.3, look_seconds=0.05), "no call used it for 0.3 s"),
        (LeaseLimits(open_seconds=0.3, look_seconds=0.05), "open for more than 0.3 s"),
    ],
)
async def test_abandoned_transaction_is_rolled_back_and_leaves_no_lock(
    data: Running, pool: EndpointPool, limits: LeaseLimits, why: str
) -> None:
    """After its limit its locks are free, and its id tells why it is gone."""
    await data.values("insert into things values (1)")
    async with operations(pool, limits=limits) as abandoned:
        transaction = await begin(abandoned)
        await abandoned.values("update things set name = 'x'", transaction)
        await data.values("update things set name = 'y'")  # waits for the lock
        error = await abandoned.error("select 1", transaction)
        assert error.kind == TRANSACTION_NOT_FOUND
        assert why in error.message
        assert "rolled back" in error.message
    assert await data.values("select name from things") == [["y"]]


async def test_transaction_in_use_at_its_end_is_stopped(data: Running, pool: EndpointPool) -> None:
    """A statement does not keep a transaction open for longer than it may be."""
    async with operations(pool, limits=LeaseLimits(open_seconds=0.2, look_seconds=0.05)) as long:
        transaction = await begin(long)
        assert "57014" in (await long.error("select pg_sleep(30)", transaction)).message
        assert (await long.error("select 1", transaction)).kind == TRANSACTION_NOT_FOUND
        await fact("it goes on", lambda: not pool.running())


async def test_only_so_many_transactions_are_open_at_once(pool: EndpointPool) -> None:
    """One more is told to come later; when one has ended there is room again."""
    async with operations(pool, limits=LeaseLimits(most_open=2)) as data:
        first, _ = await asyncio.gather(begin(data), begin(data))
        error = await data.error(BeginTransaction())
        assert error.kind == THROTTLED
        assert "2 transactions are open" in error.message
        await data.run(RollbackTransaction(first))
        await begin(data)


async def test_transaction_ended_by_a_statement_in_disguise_is_not_used_on(data: Running) -> None:
    """Should a COMMIT get past the words that are looked for, the lease ends with its transaction."""
    transaction = await begin(data)
    lease = next(iter(data.operations._transactions.leases._leases.values()))  # no SQL does this
    await lease.session.run((Step(b"COMMIT"),))
    await data.values("select 1", transaction)
    assert (await data.error("select 1", transaction)).kind == TRANSACTION_NOT_FOUND
    assert await data.values("select 1") == [[1]]


async def test_closing_lets_open_transactions_end_and_rolls_back_the_others(data: Running, pool: EndpointPool) -> None:
    """No new ones; one that ends in time is committed; one that does not is rolled back, with its locks."""
    async with operations(pool, limits=LIMITS) as closing:
        good, abandoned = await begin(closing), await begin(closing)
        await closing.values("insert into things values (1)", good)
        await closing.values("insert into things values (2)", abandoned)
        close = asyncio.ensure_future(closing.operations.close(1.0))
        await asyncio.sleep(0)
        error = await closing.error(BeginTransaction())
        assert (error.kind, error.status) == (SERVICE_UNAVAILABLE, 503)
        await closing.values("insert into things values (3)", good)
        await closing.run(CommitTransaction(good))
        await close
        assert (await closing.error(CommitTransaction(abandoned))).kind == TRANSACTION_NOT_FOUND
        assert closing.sessions.sessions == 0
    assert await data.values("select id from things order by id") == [[1], [3]]
