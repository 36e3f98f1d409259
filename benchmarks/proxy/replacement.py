"""A pool that is replaced under load, as ECS does it: the new one first, behind a balancer, then the old one ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from benchmarks.proxy.clients import Target
from benchmarks.proxy.contenders import (
    CLIENT_PASSWORD,
    DATABASE_CAS,
    OURS,
    POOL_SIZE,
    running_bare_pgbouncer,
)
from benchmarks.proxy.observation import WINDOW_SECONDS, Recovery, observed, windows
from benchmarks.proxy.secured_database import SecuredDatabase

from emberpool_local.host.ports import free_port
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.balancer import Balancer
from emberpool_local.lab.balancer import Target as BalancedTarget
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.proxy import LocalProxy
from emberpool_proxy.settings import AGENT_CONNECTIONS

STOP_TIMEOUT_SECONDS = 8.0  # ECS's is 30 s by default
WATCHED_SECONDS = 2.0  # after the old one has ended
NOTICE_SECONDS = 0.5
FLOOR = 4
HOSTS = ("127.0.0.2", "127.0.0.3")


@dataclass(frozen=True)
class _Instance:
    """One of the two pools: how the balancer knows it, its process, and whether that still runs."""

    balanced: BalancedTarget
    target: Target
    root: int
    is_running: Callable[[], bool]


def replaced(name: str, database: SecuredDatabase, program: PgbouncerProgram) -> Recovery:
    """Replace the pool; the seconds are those in which less was served than before."""
    with ExitStack() as stack:
        balancer = stack.enter_context(
            Balancer(notice_seconds=NOTICE_SECONDS, health="http" if name == OURS else "tcp")
        )
        start = _starting_ours(database, program) if name == OURS else _starting_bare(database, program)
        old = stack.enter_context(start(0))
        balancer.add(old.balanced)
        ended: list[float] = []

        def happen() -> float:
            new = stack.enter_context(start(1))
            balancer.add(new.balanced)
            told_at = time.monotonic()
            balancer.remove(old.balanced)
            os.kill(old.root, signal.SIGTERM)
            try:
                wait_until("the old pool did not end", lambda: not old.is_running(), STOP_TIMEOUT_SECONDS)
            except TimeoutError:
                os.kill(old.root, signal.SIGKILL)
            ended.append(time.monotonic())
            return told_at

        def judge(served: Sequence[float], former: float, since: float, until: float) -> float | None:
            is_over = until >= ended[0] + WATCHED_SECONDS
            is_well = all(is_good for _, is_good in windows(served, former, until - WATCHED_SECONDS, until))
            return lost_seconds(served, former, since, until) if is_over and is_well else None

        target = replace(old.target, host=balancer.address, port=balancer.port)
        return observed(target, happen, judge)


def lost_seconds(served: Sequence[float], former: float, since: float, until: float) -> float:
    """Return how long it was from the first moment to the last at which less was served than before."""
    bad = [begin for begin, is_good in windows(served, former, since, until) if not is_good]
    # A moment without any answer makes all windows bad that it lies in.
    return max(bad[-1] - bad[0] - WINDOW_SECONDS, 0.0) if bad else 0.0


def _starting_ours(
    database: SecuredDatabase, program: PgbouncerProgram
) -> Callable[[int], AbstractContextManager[_Instance]]:
    client_port, health_port = free_port(), free_port()

    @contextmanager
    def start(number: int) -> Iterator[_Instance]:
        settings = {
            "server_tls_mode": DATABASE_CAS,
            "server_tls_ca_file": str(database.authority_path),
            "listen_host": HOSTS[number],
            "health_port": str(health_port),
            "client_password": CLIENT_PASSWORD,
            "most_tasks_alive": "2",
            "floor_connections": str(FLOOR),
            "budget_name": "replaced",
            # Clients are asked to leave once the balancer sends no more of them.
            "balancer_notice_seconds": str(2 * NOTICE_SECONDS),
            "drain_seconds": "3",
            "stop_seconds": "20",
        }
        budget = POOL_SIZE + 2 * AGENT_CONNECTIONS
        with LocalProxy(
            database.access,
            max_server_connections=budget,
            client_port=client_port,
            settings=settings,
            pgbouncer=program,
        ) as proxy:
            target = Target(proxy.host, proxy.port, proxy.client_user, database.access.name, CLIENT_PASSWORD)
            balanced = (proxy.host, proxy.port, proxy.health_port)
            child = proxy.child
            yield _Instance(balanced, target, child.pid, lambda: child.is_running)

    return start


def _starting_bare(
    database: SecuredDatabase, program: PgbouncerProgram
) -> Callable[[int], AbstractContextManager[_Instance]]:
    @contextmanager
    def start(_: int) -> Iterator[_Instance]:
        with running_bare_pgbouncer(database, program) as bare:
            target, child = bare.contender().target, bare.child
            balanced = (target.host, target.port, target.port)
            yield _Instance(balanced, target, child.pid, lambda: child.is_running)

    return start
