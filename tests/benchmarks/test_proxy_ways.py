"""All ways to the database that the proxy's benchmarks compare are as they say: TLS, SCRAM, and their own limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from benchmarks.proxy.clients import Target, running_clients
from benchmarks.proxy.contenders import (
    Contender,
    direct,
    running_bare_pgbouncer,
    running_emberpool,
)
from benchmarks.proxy.pgbench import Cpu, pgbench_path, run_block
from benchmarks.proxy.pgpool import find_pgpool, running_pgpool
from benchmarks.proxy.processes import descendants
from benchmarks.proxy.secured_database import SecuredDatabase, running_secured_database
from benchmarks.proxy.steady import in_turns

from emberpool_local.pgbouncer.program import find_pgbouncer

MAX_CONNECTIONS = 50
WAYS = ("direct", "bare", "emberpool", "pgpool")
SECURITY = """
    select ssl, count(*) over () from pg_stat_ssl join pg_stat_activity using (pid) where pid = pg_backend_pid()
"""


@pytest.fixture(scope="module")
def database() -> Iterator[SecuredDatabase]:
    with running_secured_database(MAX_CONNECTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def ways(database: SecuredDatabase) -> Iterator[dict[str, Contender]]:
    program = find_pgbouncer()
    with (
        running_bare_pgbouncer(database, program) as bare,
        running_emberpool(database, program) as ours,
        running_pgpool(find_pgpool(print), database, 4) as pgpool,
    ):
        yield dict(zip(WAYS, (direct(database), bare.contender(), ours, pgpool), strict=True))


def connect(target: Target, **changes: str) -> psycopg.Connection[tuple[object, ...]]:
    given = {"password": target.password, "sslmode": "require", **changes}
    return psycopg.connect(
        host=target.host, port=target.port, user=target.user, dbname=target.database, connect_timeout=5, **given
    )


def pgbenches() -> list[str]:
    """Return the states of this process's pgbenches, as /proc has them."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            name, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rsplit(")", 1)
            found += [state.split()[0]] if name == "pgbench" else []
    return found


def pgbenches_at_work() -> list[str]:
    return [state for state in pgbenches() if state != "T"]


@pytest.mark.parametrize("name", WAYS)
def test_both_sides_have_tls_and_a_password(ways: dict[str, Contender], name: str) -> None:
    """The client's connection and the backend's are encrypted; no other password gets in, nobody without TLS."""
    target = ways[name].target
    with connect(target) as connection:
        assert connection.pgconn.ssl_in_use
        row = connection.execute(SECURITY).fetchone()
    assert row is not None
    assert row[0] is True
    with pytest.raises(psycopg.OperationalError):
        connect(target, password="another-password-which-is-not-the-right-one").close()


@pytest.mark.parametrize("name", WAYS[1:])
def test_proxy_refuses_a_client_without_tls(ways: dict[str, Contender], name: str) -> None:
    """What is measured with TLS cannot be had without."""
    with pytest.raises(psycopg.OperationalError):
        connect(ways[name].target, sslmode="disable").close()


def test_block_of_pgbench_costs_cpu_on_its_way_only(database: SecuredDatabase, ways: dict[str, Contender]) -> None:
    """Directly there is no proxy whose CPU could count; over a pool both the proxy's and the database's do."""
    database.fill(scale=1)
    pgbench = pgbench_path(database.postgres.program)
    for name, is_direct in (("direct", True), ("emberpool", False)):
        way = ways[name]
        cpu = Cpu(way.cpu_seconds, database.cpu_seconds)
        block = run_block(pgbench, way.environment(), 2, 1, ["--builtin=select-only"], cpu)
        assert block.transactions_per_second > 0
        assert block.database_cpu_us > 0
        assert (block.proxy_cpu_us == 0) is is_direct


def test_block_with_a_client_that_fails_raises(database: SecuredDatabase, ways: dict[str, Contender]) -> None:
    """More clients than the bare PgBouncer takes by default are no measurement."""
    cpu = Cpu(ways["bare"].cpu_seconds, database.cpu_seconds)
    pgbench = pgbench_path(database.postgres.program)
    with pytest.raises(RuntimeError, match="max_client_conn"):
        run_block(pgbench, ways["bare"].environment(), 120, 1, ["--builtin=select-only"], cpu)


def test_ways_in_turns_are_never_at_work_together(database: SecuredDatabase, ways: dict[str, Contender]) -> None:
    """Each way's transactions and CPU are told; the clients of the other are stopped."""
    database.fill(scale=1)
    both = (ways["bare"], ways["emberpool"])
    together, is_over = 0, threading.Event()

    def look() -> None:
        nonlocal together
        while not is_over.wait(0.005):
            # They change places while one is looked at, but hardly three times in a row.
            together += all(len(pgbenches_at_work()) > 1 for _ in range(3))

    looks = threading.Thread(target=look)
    looks.start()
    try:
        found = in_turns(pgbench_path(database.postgres.program), both, clients=4, seconds=1.0)
    finally:
        is_over.set()
        looks.join()
    assert together == 0
    for way in both:
        assert found[way.name].transactions_per_second > 0
        assert found[way.name].proxy_cpu_us > 0


def test_client_that_fails_ends_all_turns(database: SecuredDatabase, ways: dict[str, Contender]) -> None:
    """The bare PgBouncer refuses the 101st client: that is told, and the other way's stopped pgbench is gone."""
    database.fill(scale=1)
    both = (ways["emberpool"], ways["bare"])
    with pytest.raises(RuntimeError, match="max_client_conn"):
        in_turns(pgbench_path(database.postgres.program), both, clients=120, seconds=1.0)
    assert not pgbenches()


def test_storm_tells_who_got_a_row_and_who_did_not(ways: dict[str, Contender]) -> None:
    """120 at once: all get a row from emberpool, PgBouncer's default of 100 refuses 20, a database of 50 most."""
    with running_clients() as clients:
        failed = {}
        for name in ("emberpool", "bare", "direct"):
            storm = clients.connect(ways[name].target, 120, asks=True)
            failed[name] = sum(storm.failures.values())
            assert len(storm.moments) == 101
            assert storm.moments == sorted(storm.moments)
            clients.close()
    assert failed["emberpool"] == 0
    assert failed["bare"] >= 20
    assert failed["direct"] > 120 - MAX_CONNECTIONS
