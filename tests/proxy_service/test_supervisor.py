"""The process tree: what crashes is started again, what hangs is replaced, and nobody else notices."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from emberpool_proxy.backoff import CRASHES_BEFORE_GIVING_UP, CrashLog
from emberpool_proxy.pgbouncer.config import INI_FILE, LIMIT, RUNNING_INI_FILE

from ..processes import is_running
from .conftest import Proxy, wait_until

MakeProxy = Callable[..., Proxy]


def kill_agent(proxy: Proxy) -> int:
    """Kill the agent; return the process id of the one that takes its place."""
    old = proxy.agent_pid()
    os.kill(old, signal.SIGKILL)
    return wait_until("the agent was not started again", lambda: (new := proxy.agent_pid()) != old and new)


def test_killed_agent_is_noticed_by_nobody(make_proxy: MakeProxy) -> None:
    """PgBouncer goes on while the agent is gone: an open transaction commits, and the new agent attaches to it."""
    proxy = make_proxy().start_ready()
    pid = proxy.pgbouncer_pid()
    with psycopg.connect(proxy.conninfo()) as connection:
        connection.execute("create temp table kept (id int) on commit drop")
        kill_agent(proxy)
        connection.execute("insert into kept values (1)")
        assert connection.execute("select count(*) from kept").fetchone() == (1,)
    wait_until("the new agent did not attach", lambda: proxy.status("/readyz") == 200)
    assert proxy.pgbouncer_pids() == [pid]
    assert is_running(pid)
    with psycopg.connect(proxy.conninfo()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


@contextmanager
def draining_around_a_transaction(proxy: Proxy) -> Iterator[None]:
    """Stop the proxy while a transaction is open; after the block it commits, and the proxy has drained."""
    busy = psycopg.connect(proxy.conninfo())
    busy.execute("select 1")
    proxy.terminate()
    wait_until("the drain did not begin", lambda: proxy.get("/readyz")[1].get("reason") == "draining")
    yield
    busy.execute("select 1")
    busy.commit()
    busy.close()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 0


def test_new_agent_can_still_drain(make_proxy: MakeProxy) -> None:
    """An agent that attached to a PgBouncer of its predecessor's drains it without losing a transaction."""
    proxy = make_proxy().start_ready()
    kill_agent(proxy)
    wait_until("the new agent did not attach", lambda: proxy.status("/readyz") == 200)
    with draining_around_a_transaction(proxy):
        pass


def test_agent_killed_in_a_drain_does_not_hold_it_up(make_proxy: MakeProxy) -> None:
    """The next agent goes on with the drain."""
    proxy = make_proxy().start_ready()
    with draining_around_a_transaction(proxy):
        kill_agent(proxy)


def test_second_signal_does_not_cut_the_drain_short(make_proxy: MakeProxy) -> None:
    """An impatient second SIGTERM loses no transaction."""
    proxy = make_proxy().start_ready()
    with draining_around_a_transaction(proxy):
        proxy.terminate()


def test_frozen_agent_is_replaced(make_proxy: MakeProxy) -> None:
    """An agent that stands still is ended and started again; PgBouncer serves all the while."""
    proxy = make_proxy().start_ready()
    old, pid = proxy.agent_pid(), proxy.pgbouncer_pid()
    os.kill(old, signal.SIGSTOP)
    wait_until("a frozen agent was not replaced", lambda: proxy.agent_pid() not in (0, old), timeout=30)
    wait_until("the new agent did not attach", lambda: proxy.status("/readyz") == 200)
    assert proxy.pgbouncer_pids() == [pid]


def test_agent_that_keeps_crashing_ends_the_proxy(make_proxy: MakeProxy) -> None:
    """After several crashes in a row the proxy lets PgBouncer's clients leave and exits non-zero."""
    proxy = make_proxy(stop_seconds=1).start_ready()
    killed: set[int] = set()

    def alive() -> set[int]:
        return {proxy.agent_pid()} - killed - {0}

    while proxy.exit_code() is None and len(killed) < CRASHES_BEFORE_GIVING_UP:
        agent = wait_until("no new agent", lambda: proxy.exit_code() is not None or alive())
        if agent is not True:
            killed |= agent
            os.kill(agent.pop(), signal.SIGKILL)
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 1
    assert "the agent ended 5 times" in proxy.log_lines()[-1]["message"]


def test_killed_supervisor_leaves_nothing(make_proxy: MakeProxy) -> None:
    """When the supervisor is killed outright, its agent and PgBouncer end too."""
    proxy = make_proxy().start_ready()
    pids = [proxy.agent_pid(), *proxy.pgbouncer_pids()]
    proxy.process.kill()
    for pid in pids:
        wait_until("a child outlived the supervisor", lambda: not is_running(pid))  # noqa: B023 (called at once)


def limit_in(ini: Path) -> int:
    return next(int(line.split(" = ")[1]) for line in ini.read_text().splitlines() if line.startswith(LIMIT))


def test_several_processes_share_one_port_and_one_budget(make_proxy: MakeProxy) -> None:
    """Two PgBouncers serve the same port; together they may open the task's connections, and no more."""
    proxy = make_proxy(pgbouncer_processes=2, max_server_connections=3).start_ready()
    assert len(proxy.pgbouncer_pids()) == 2
    folders = [Path(proxy.setting("run_folder")) / str(index) for index in (0, 1)]
    assert [limit_in(folder / INI_FILE) for folder in folders] == [1, 1]
    wait_until("the budget is not used", lambda: sum(limit_in(folder / RUNNING_INI_FILE) for folder in folders) == 3)
    connections = [psycopg.connect(proxy.conninfo()) for _ in range(12)]
    for connection in connections:
        assert connection.execute("select 1").fetchone() == (1,)
        connection.rollback()
        connection.close()


def test_one_of_several_processes_that_crashes_is_started_again(make_proxy: MakeProxy) -> None:
    """The other process goes on, and the proxy is ready again with both."""
    proxy = make_proxy(pgbouncer_processes=2).start_ready()
    first, second = proxy.pgbouncer_pids()
    os.kill(first, signal.SIGKILL)
    wait_until("the crashed process did not come back", lambda: len(proxy.pgbouncer_pids()) == 3)
    assert is_running(second)
    wait_until("the proxy is not ready again", lambda: proxy.status("/readyz") == 200)


def test_pause_between_restarts_grows_until_giving_up() -> None:
    """The first restart is at once; crashes that are long ago do not count."""
    crashes = CrashLog()
    pauses = [crashes.add(now=float(second)) for second in range(CRASHES_BEFORE_GIVING_UP)]
    assert pauses == [0.0, 0.4, 0.8, 1.6, None]
    assert crashes.add(now=1000.0) == 0.0
    assert crashes.total == CRASHES_BEFORE_GIVING_UP + 1
