"""The lab's rig: real tasks at nodes of their own, and what is left of them when they go."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from emberpool_local.errors import ProxyUnavailable
from emberpool_local.host.temp_folder import sweep
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.lab.task import LabTask, is_process
from emberpool_local.pgbouncer.program import PgbouncerProgram

# Without a simulated AWS: what comes from it is the credentials' faults to try.
OPTIONS = RigOptions(tasks=2, has_aws=False, has_clock=False)
MANY_SECONDS = 30.0
POOL_CONNECTIONS = "select count(*) from pg_stat_activity where usename = %s and host(client_addr) = %s"
OWNER = """
import signal
from emberpool_local.lab.rig import RigOptions, open_rig

with open_rig(RigOptions(tasks=1, has_aws=False, has_clock=False)) as rig:
    task = rig.tasks[0]
    print(task.supervisor_pid, task.agent_pid(), *task.pgbouncer_pids(), flush=True)
    print(task.run_folder.parent, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram) -> Iterator[Rig]:
    """Two tasks; a test that takes one away starts another."""
    with open_rig(OPTIONS) as running:
        yield running


@pytest.fixture
def task(rig: Rig) -> LabTask:
    """The older one."""
    return rig.tasks[0]


def client_at(rig: Rig, host: str, port: int) -> psycopg.Connection[tuple[object, ...]]:
    login = rig.handler_environment()
    return psycopg.connect(
        host=host,
        port=port,
        user=login["EMBERPOOL_USER"],
        password=login["EMBERPOOL_PASSWORD"],
        dbname=login["EMBERPOOL_DATABASE"],
        sslmode=login["EMBERPOOL_SSLMODE"],
        autocommit=True,
    )


def client_of(rig: Rig, task: LabTask) -> psycopg.Connection[tuple[object, ...]]:
    """Return a client of this task, past the balancer."""
    host, port, _ = task.target
    return client_at(rig, host, port)


def pool_connections(rig: Rig, task: LabTask) -> int:
    return int(rig.ask(POOL_CONNECTIONS, rig.database.role, task.host)[0][0])


def test_database_knows_each_task_by_its_address(rig: Rig) -> None:
    """What a client asks through a task comes to the database from that task, encrypted where there are namespaces."""
    query = (
        "select host(client_addr), ssl from pg_stat_activity join pg_stat_ssl using (pid) where pid = pg_backend_pid()"
    )
    for task in rig.tasks:
        with client_of(rig, task) as client:
            assert client.execute(query).fetchone() == (task.host, rig.database.has_tls)


def test_tasks_know_each_other(rig: Rig) -> None:
    """Each task finds the other one by the fleet's name, so that a cancel request reaches the right one."""
    if not rig.database.names:
        pytest.skip("on loopback the tasks have no resolver of their own")
    for task in rig.tasks:
        wait_until(f"{task.host} has no peer", lambda task=task: task.metric("emberpool_peers") == 1, MANY_SECONDS)


def test_functions_reach_every_task_through_the_balancer(rig: Rig) -> None:
    """New connections go to both tasks in turn."""
    clients = [client_at(rig, rig.balancer.address, rig.balancer.port) for _ in range(4)]
    try:
        assert sorted(rig.balancer.connections().values()) == [2, 2]
    finally:
        for client in clients:
            client.close()


def test_killed_processes_are_replaced(rig: Rig, task: LabTask) -> None:
    """After either fault other processes run, and the task serves."""
    agent, engines = task.agent_pid(), task.pgbouncer_pids()
    rig.kill_pgbouncer(task)
    rig.kill_agent(task)
    assert task.agent_pid() not in (0, agent)
    assert not set(task.pgbouncer_pids()) & set(engines)
    with client_of(rig, task) as client:
        assert client.execute("select 1").fetchone() == (1,)


def test_replacement_is_ready_before_the_old_task_drains(rig: Rig, task: LabTask) -> None:
    """A rolling deployment never has fewer tasks than before, and the time line says in which order it went."""
    rig.notes.clear()
    new = rig.replace(task)
    assert [text for _, text in rig.notes] == [
        f"{new.host} starts",
        f"{new.host} is ready",
        f"{task.host} drains",
        f"{task.host} has drained",
    ]
    assert len(rig.tasks) == OPTIONS.tasks
    rig.wait_until_balanced()


def test_database_keeps_the_connections_of_a_task_that_vanished(rig: Rig, task: LabTask) -> None:
    """Nobody tells the database that it is gone, so that its place is still taken when another task has come."""
    room = rig.room_for_tasks()
    with client_of(rig, task) as client:
        client.execute("select 1")
        rig.vanish(task)
        assert pool_connections(rig, task) > 0
        assert rig.room_for_tasks() == room
        rig.add()
        assert rig.room_for_tasks() == room - 1


def test_task_that_does_not_start_leaves_the_others_alone(rig: Rig) -> None:
    """The proxy's own words are in the error, and the rig goes on as it was."""
    before = list(rig.tasks)
    with pytest.raises(ProxyUnavailable, match="EMBERPOOL_PROXY_QUERY_WAIT_SECONDS"):
        rig.add(query_wait_seconds="0")
    assert rig.tasks == before


def test_killed_owner_leaves_nothing(pgbouncer_program: PgbouncerProgram) -> None:
    """SIGKILL of who opened the rig ends every process of its tasks, and their folder can be swept."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        folder = Path(owner.stdout.readline().strip())
        assert len(pids) == 3
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    wait_until("a process outlived the rig", lambda: not any(map(is_process, pids)), MANY_SECONDS)

    def is_swept() -> bool:
        sweep(folder.parent)
        return not folder.exists()

    wait_until("the rig's folder was not swept", is_swept, MANY_SECONDS)
