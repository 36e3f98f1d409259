"""The metrics: every number on /metrics and in CloudWatch's lines is what PgBouncer says and what the log told."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy import metrics
from emberpool_proxy.agent.budget_reading import FleetView, PoolKey, PoolUse, Session
from emberpool_proxy.agent.budget_reading import Reading as BudgetReading
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.agent.decide import Decision
from emberpool_proxy.data_endpoint.counts import DataCounts
from emberpool_proxy.health import Health
from emberpool_proxy.metrics import CLOUDWATCH_METRICS, METRICS, Counts
from emberpool_proxy.pgbouncer.config import DATA_COUNTS_FILE
from emberpool_proxy.pgbouncer.installed import InstalledPgbouncer
from emberpool_proxy.pgbouncer.log_lines import (
    ClientGaveUpWaiting,
    ClientLoginFailed,
    ServerConnectionLost,
    ServerLoginFailed,
    ServerUnreachable,
)
from emberpool_proxy.pgbouncer.rows import PoolRow, StatsRow
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.telemetry.emf import EmfLog
from emberpool_proxy.telemetry.readings import Reading, longest_wait
from emberpool_proxy.telemetry.samples import Samples

from .bare_pgbouncer import DATABASE, BarePgbouncer, add_role, bare_pgbouncer, served
from .observed import Observed, observed, some_settings

SERVERS = 2


@pytest.fixture(scope="module")
def bare(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    add_role(postgres)
    databases = {DATABASE: f"{served(postgres)} pool_size={SERVERS}"}
    with bare_pgbouncer(pgbouncer_program, databases, settings={"stats_period": "1"}) as running:
        yield running


async def page(seen: Observed) -> dict[tuple[str, frozenset[str]], float]:
    """Return the values of /metrics by name and label values."""
    status, text = await seen.get("/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def query(bare: BarePgbouncer) -> None:
    async with await psycopg.AsyncConnection.connect(bare.conninfo()) as client:
        await client.execute("select 1")


async def test_page_shows_what_clients_and_servers_do(bare: BarePgbouncer) -> None:
    """Two clients in transactions, one idle and two that wait are counted as such, with who waits longest."""
    async with observed() as seen, await bare.console() as console, AsyncExitStack() as clients:
        idle, *busy = [
            await clients.enter_async_context(await psycopg.AsyncConnection.connect(bare.conninfo()))
            for _ in range(1 + SERVERS)
        ]
        await idle.execute("select 1")
        await idle.commit()
        for client in busy:
            await client.execute("select 1")
        waiting = [asyncio.create_task(query(bare)) for _ in range(2)]
        async with asyncio.timeout(10):
            while not (seen.health.clients_waiting == len(waiting) and longest_wait(seen.health.readings.values())):
                await seen.tick(bare, console)
        values = await page(seen)
        for client in busy:
            await client.commit()
        await asyncio.gather(*waiting)
    for state, count in (("active", 2), ("idle", 1), ("waiting", 2), ("login", 0)):
        assert values["emberpool_client_connections", frozenset({"0", state})] == count, state
    for state, count in (("active", 2), ("idle", 0), ("login", 0), ("cancel", 0)):
        assert values["emberpool_server_connections", frozenset({"0", state})] == count, state
    assert 0 < values["emberpool_longest_wait_seconds", frozenset({"0"})] < 10
    assert values["emberpool_max_server_connections", frozenset()] == seen.settings.max_server_connections


async def test_totals_grow_with_the_work(bare: BarePgbouncer) -> None:
    """Transactions, queries, bytes and time grow by what a client did."""
    async with observed() as seen:
        await seen.tick(bare)
        before = await page(seen)
        async with await psycopg.AsyncConnection.connect(bare.conninfo()) as client:
            await client.execute("select pg_sleep(0.05), repeat('x', 10000)")
        await seen.tick(bare)
        after = await page(seen)
    here = frozenset({"0", DATABASE})
    grown = {name: after[name, labels] - before.get((name, labels), 0) for name, labels in after if labels == here}
    assert grown["emberpool_transactions_total"] == 1
    assert grown["emberpool_queries_total"] == 3  # BEGIN, the select, COMMIT
    assert grown["emberpool_sent_bytes_total"] > 10_000
    assert 0 < grown["emberpool_received_bytes_total"] < 10_000
    assert 0.05 <= grown["emberpool_query_seconds_total"] <= grown["emberpool_transaction_seconds_total"] + 0.05


async def test_state_of_the_task_is_on_the_page(bare: BarePgbouncer) -> None:
    """Drain, readiness, restarts, and the database's state are numbers; an unknown database state is no number."""
    async with observed() as seen, await bare.console() as console:
        await seen.tick(bare, console)
        values = await page(seen)
        assert ("emberpool_database_up", frozenset()) not in values
        expected = {"healthy": 1, "ready": 1, "draining": 0, "database_paused": 0, "pgbouncer_restarts_total": 0}
        assert {name: values["emberpool_" + name, frozenset()] for name in expected} == expected
        seen.health.is_draining, seen.health.restarts, seen.health.database = True, 3, "paused"
        values = await page(seen)
        expected = {"healthy": 1, "ready": 0, "draining": 1, "database_paused": 1, "pgbouncer_restarts_total": 3}
        assert {name: values["emberpool_" + name, frozenset()] for name in expected} == expected
        assert values["emberpool_database_up", frozenset()] == 0


async def test_every_metric_that_is_known_is_on_the_page(bare: BarePgbouncer, tmp_path: Path) -> None:
    """Every name of the table is on the page with its help, and the agent's own memory and CPU beside them."""
    async with observed(data_port=8443, run_folder=str(tmp_path)) as seen:
        await seen.tick(bare)
        data = DataCounts()
        data.add(0.01, "DatabaseErrorException")
        folder = RunFolder(seen.settings.engine_path(0), owner=None)
        folder.path.mkdir()
        folder.write(DATA_COUNTS_FILE, data.encoded())
        seen.health.database = "up"
        counts = seen.telemetry.counts
        counts.set(metrics.CREDENTIALS_AGE, 12.0, "database")
        counts.set(metrics.CERTIFICATE_SECONDS_LEFT, 3600)
        counts.set(metrics.PEERS, 4)
        seen.health.budget = of_a_fleet()
        seen.health.pgbouncer = InstalledPgbouncer.of("PgBouncer 1.24.1", program=None)
        text = (await seen.get("/metrics"))[1]
    for metric in METRICS:
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert f"# HELP {metric.name} {metric.help}" in text or f"# HELP {family} {metric.help}" in text, metric.name
    assert "process_resident_memory_bytes" in text
    assert "process_cpu_seconds_total" in text


async def test_data_endpoint_that_is_gone_has_no_metrics(bare: BarePgbouncer, tmp_path: Path) -> None:
    """What it wrote a while ago is not shown as if it were of now, nor is half a file."""
    async with observed(data_port=8443, run_folder=str(tmp_path)) as seen:
        await seen.tick(bare)
        path = seen.settings.engine_path(0) / DATA_COUNTS_FILE
        path.parent.mkdir()
        path.write_bytes(DataCounts().encoded()[:-5])
        assert metrics.DATA_REQUESTS not in (await seen.get("/metrics"))[1]
        path.write_bytes(DataCounts().encoded())
        assert metrics.DATA_REQUESTS in (await seen.get("/metrics"))[1]
        os.utime(path, (0, 0))
        assert metrics.DATA_REQUESTS not in (await seen.get("/metrics"))[1]


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (ClientLoginFailed("db", "u", "1.1.1.1", "no", "credentials"), metrics.CLIENT_LOGIN_FAILURES, ("credentials",)),
        (ServerLoginFailed("db", "u", "", "no"), metrics.SERVER_LOGIN_FAILURES, ()),
        (ServerUnreachable("db", "u", "", "no"), metrics.SERVER_UNREACHABLE, ()),
        (ServerConnectionLost("db", "u", "", "no"), metrics.SERVER_CONNECTIONS_LOST, ()),
        (ClientGaveUpWaiting("db", "u", "", "no"), metrics.WAITED_IN_VAIN, ()),
    ],
)
def test_each_event_of_the_log_counts_once(event: Any, name: str, labels: tuple[str, ...]) -> None:
    """An event makes its own counter grow by one and no other."""
    counts = Counts()
    before = counts.values()
    counts.count_event(0, event)
    grown = {key: value - before.get(key, 0) for key, value in counts.values().items() if value != before.get(key)}
    assert grown == {(name, labels): 1}


def test_misused_metric_is_refused() -> None:
    """A gauge cannot be counted, a counter cannot be set, and labels must be all there."""
    counts = Counts()
    for misuse in (
        lambda: counts.add(metrics.READY),
        lambda: counts.set(metrics.QUERIES, 1),
        lambda: counts.add(metrics.CREDENTIALS_RENEWALS),
    ):
        with pytest.raises(ValueError, match="emberpool_"):
            misuse()


def test_names_follow_prometheus_rules() -> None:
    """Names are unique, counters end in _total, units are in the name, and help is a sentence."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("emberpool_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.unit in metric.name
        assert metric.help.endswith(".")


# --- the budget


@dataclass
class Counted:
    slots_taken: int = 9
    slots_given: int = 5
    times_lost: int = 1


def of_a_fleet(is_connected: bool = True, **changes: int) -> BudgetStatus:
    """Return how a task with 4 slots of 20 stands: of a budget of 30 for at most 2 tasks with a floor of 3 each."""
    settings = some_settings(max_server_connections=30, most_tasks_alive=2, floor_connections=3)
    others = (Session(12, slots=6, floor=3, missing=1),)
    view = {
        "slots": 18,
        "pool_connections": 15,
        "promised_slots": 20,
        "smallest_claim": 20,
        "database_has_room_for": 18,
    }
    fleet = FleetView(at=0.0, own=Session(11, slots=4, floor=3), others=others, free=(10, 11), **{**view, **changes})
    pools = {
        PoolKey(0, "a"): PoolUse(limit=5, servers=5, busy=4, waiting=2, max_wait_seconds=0.25),
        PoolKey(1, "a"): PoolUse(limit=2, servers=1, busy=1, waiting=0),
    }
    held = frozenset(range(4)) if is_connected else frozenset()
    reading = BudgetReading(0.0, pools, held, is_connected=is_connected, fleet=fleet)
    return BudgetStatus.of(settings, reading, Decision({}, missing=2, wants_connection=True), Counted())


def values_of(budget: BudgetStatus | None, **changes: object) -> dict[str, float]:
    samples = Samples(some_settings(**changes), Health(is_answering=True, budget=budget), Counts())
    return {name: value for name, labels, value in samples.current() if not labels}


def test_budget_of_a_fleet_is_numbers() -> None:
    """Each fact of the last step is a metric: what the task has and lacks, and what the database told of the fleet."""
    values = values_of(of_a_fleet())
    expected = {
        metrics.MAX_SERVER_CONNECTIONS: 7,
        metrics.BUDGET_CONNECTIONS: 30,
        metrics.BUDGET_FLOOR: 3,
        metrics.BUDGET_LIMIT: 7,
        metrics.BUDGET_SLOTS_HELD: 4,
        metrics.BUDGET_MISSING: 2,
        metrics.BUDGET_CONNECTION_MISSING: 0,
        metrics.BUDGET_SLOTS_PROMISED: 20,
        metrics.BUDGET_SLOTS: 18,
        metrics.BUDGET_SLOTS_FREE: 2,
        metrics.BUDGET_TASKS: 2,
        metrics.BUDGET_FLEET_CONNECTIONS: 15,
        metrics.BUDGET_EXCESS: 0,
        metrics.BUDGET_SHORT_BY: 2,
        metrics.BUDGET_CLAIM_CONFLICT: 0,
        metrics.BUDGET_SLOTS_TAKEN: 9,
        metrics.BUDGET_SLOTS_GIVEN: 5,
        metrics.BUDGET_CONNECTIONS_LOST: 1,
    }
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"smallest_claim": 12}, metrics.BUDGET_CLAIM_CONFLICT, 1),
        ({"smallest_claim": 25}, metrics.BUDGET_CLAIM_CONFLICT, 0),
        ({"database_has_room_for": 20}, metrics.BUDGET_SHORT_BY, 0),
        ({"database_has_room_for": -4}, metrics.BUDGET_SHORT_BY, 24),
        ({"pool_connections": 18}, metrics.BUDGET_EXCESS, 2),
    ],
)
def test_each_fault_of_the_budget_has_its_number(change: dict[str, int], name: str, value: float) -> None:
    """Another deployment's smaller promise, a database without the room and connections of a dead task are seen."""
    assert values_of(of_a_fleet(**change))[name] == value


def test_lost_control_connection_is_seen_and_old_news_of_the_fleet_are_not() -> None:
    """Without its control connection a task has its floor, an alarm, and no numbers of a fleet that has changed."""
    values = values_of(of_a_fleet(is_connected=False))
    assert (values[metrics.BUDGET_CONNECTION_MISSING], values[metrics.MAX_SERVER_CONNECTIONS]) == (1, 3)
    assert not {metrics.BUDGET_SLOTS, metrics.BUDGET_SLOTS_FREE, metrics.BUDGET_SHORT_BY} & set(values)


def test_task_that_is_alone_has_no_numbers_of_a_shared_budget() -> None:
    """It may have its whole budget; nothing is shared, so nothing is there to alarm on."""
    values = values_of(None)
    assert values[metrics.MAX_SERVER_CONNECTIONS] == 3
    assert not [name for name in values if name.startswith("emberpool_budget_")]


def test_shared_budget_is_not_counted_once_for_each_task() -> None:
    """Before its first step a task of a fleet may have its floor, not the whole fleet's budget."""
    values = values_of(None, max_server_connections=30, most_tasks_alive=2, floor_connections=3)
    assert values[metrics.MAX_SERVER_CONNECTIONS] == 3


# --- CloudWatch

Change = Callable[[Health, Counts], None]


def reading(index: int, **totals: int) -> Reading:
    pool = PoolRow(DATABASE, "role", cl_active=3, cl_waiting=1, sv_active=2, maxwait=index, maxwait_us=500_000)
    return Reading(index, (pool,), (StatsRow(DATABASE, **totals),), ())


def emf_lines(*changes: Change) -> list[dict[str, Any]]:
    """Return one line for each change, a minute apart, after a first look at a fresh agent."""
    health, counts = Health(is_answering=True, database="up"), Counts()
    health.take([reading(0), reading(1)])
    samples = Samples(some_settings(), health, counts)
    log = EmfLog(samples.current, "Emberpool", "orders", "task-1", io.StringIO())
    lines = [log.line(0)]
    for change in changes:
        change(health, counts)
        lines.append(log.line(60))
    return [json.loads(line) for line in lines[1:]]


def test_line_is_in_cloudwatchs_format() -> None:
    """The line names each metric with a unit of CloudWatch's, its one dimension is the service, the task is not one."""
    (line,) = emf_lines(lambda *_: None)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert line["_aws"]["Timestamp"] == 60_000
    assert directive["Namespace"] == "Emberpool"
    assert directive["Dimensions"] == [["Service"]]
    assert (line["Service"], line["Task"]) == ("orders", "task-1")
    named = {metric["Name"] for metric in directive["Metrics"]}
    assert named == set(line) - {"_aws", "Service", "Task"}
    assert {metric["Unit"] for metric in directive["Metrics"]} <= {"Count", "Seconds", "Milliseconds", "None"}


def test_processes_of_a_task_are_one_number() -> None:
    """Connections are summed over the processes, the longest wait is the longest of all."""
    (line,) = emf_lines(lambda *_: None)
    assert (line["ClientConnections"], line["ClientsWaiting"], line["ServerConnections"]) == (8, 2, 4)
    assert (line["LongestWait"], line["MaxServerConnections"], line["DatabaseUp"]) == (1.5, 3, 1)


def test_counters_are_what_happened_in_the_minute() -> None:
    """Each line has the minute's own counts; a PgBouncer that started anew counts from 0 and takes nothing away."""

    def first(health: Health, counts: Counts) -> None:
        health.take([reading(0, total_xact_count=100, total_xact_time=500_000), reading(1)])
        counts.add(metrics.CLIENT_LOGIN_FAILURES, "credentials", by=2)
        counts.add(metrics.CLIENT_LOGIN_FAILURES, "tls")

    def restarted(health: Health, _: Counts) -> None:
        health.take([reading(0, total_xact_count=7), reading(1)])
        health.restarts = 1

    one, two = emf_lines(first, restarted)
    assert (one["Transactions"], one["TransactionTime"], one["ClientLoginFailures"]) == (100, 5.0, 3)
    assert (two["Transactions"], two["ClientLoginFailures"], two["PgbouncerRestarts"]) == (7, 0, 1)


def test_budget_is_in_cloudwatch() -> None:
    """What alarms are made of is in the line of a task that shares a budget, and in no other's."""

    def share(health: Health, _: Counts) -> None:
        health.budget = of_a_fleet(smallest_claim=12)

    alone, shared = emf_lines(lambda *_: None, share)
    names = {"BudgetMissing", "BudgetSlotsFree", "BudgetConnectionsShort", "BudgetClaimConflict"}
    assert [shared[name] for name in sorted(names)] == [1, 2, 2, 2]
    assert (shared["BudgetControlConnectionMissing"], shared["MaxServerConnections"]) == (0, 7)
    assert not [name for name in alone if name.startswith("Budget")]


def test_what_is_unknown_is_left_out() -> None:
    """Without an answer of PgBouncer there is no number of connections, rather than a wrong zero."""

    def silent(health: Health, _: Counts) -> None:
        health.take([])
        health.database = "unknown"

    (line,) = emf_lines(silent)
    assert not {"ClientConnections", "Transactions", "TransactionTime", "DatabaseUp"} & set(line)
    assert "MaxServerConnections" in line


def test_cloudwatch_metrics_are_made_of_known_ones() -> None:
    """Every source and label of CloudWatch's table is in the table of metrics; names are unique."""
    assert len({metric.name for metric in CLOUDWATCH_METRICS}) == len(CLOUDWATCH_METRICS)
    for metric in CLOUDWATCH_METRICS:
        for name in metric.of:
            assert (metrics.BY_NAME[name].kind == "counter") == (metric.how in ("increase", "average"))
        assert {label for label, _ in metric.only} <= set(metrics.BY_NAME[metric.of[0]].labels)
