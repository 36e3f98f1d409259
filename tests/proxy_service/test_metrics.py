"""The metrics: every number on /metrics and in CloudWatch's lines is what PgBouncer says and what the log told."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy import metrics
from emberpool_proxy.health import Health
from emberpool_proxy.metrics import CLOUDWATCH_METRICS, METRICS, Counts
from emberpool_proxy.pgbouncer.log_lines import (
    ClientGaveUpWaiting,
    ClientLoginFailed,
    ServerConnectionLost,
    ServerLoginFailed,
    ServerUnreachable,
)
from emberpool_proxy.pgbouncer.rows import PoolRow, StatsRow
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


async def test_every_metric_that_is_known_is_on_the_page(bare: BarePgbouncer) -> None:
    """Every name of the table is on the page with its help, and the agent's own memory and CPU beside them."""
    async with observed() as seen:
        await seen.tick(bare)
        seen.health.database = "up"
        counts = seen.telemetry.counts
        counts.set(metrics.CREDENTIALS_AGE, 12.0, "database")
        counts.set(metrics.CERTIFICATE_SECONDS_LEFT, 3600)
        counts.set(metrics.PEERS, 4)
        text = (await seen.get("/metrics"))[1]
    for metric in METRICS:
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert f"# HELP {metric.name} {metric.help}" in text or f"# HELP {family} {metric.help}" in text, metric.name
    assert "process_resident_memory_bytes" in text
    assert "process_cpu_seconds_total" in text


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
