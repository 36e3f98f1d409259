"""From a burst on one task of a fleet to its holding the free slots, and to PgBouncer's having the connections open.

Its clients are connected before and begin at once with a statement that takes long: what is measured is the fleet, not
their logins. The others are awake with one client each, or all have been without work for so long that nobody has
a connection.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
from benchmarks.command import Progress
from benchmarks.fleet.rig import POLL_SECONDS, FleetTerms, RunningTask, Watch, running_database, running_fleet, watching

from emberpool_local.pgbouncer.program import PgbouncerProgram

TERMS = FleetTerms(tasks=4, slots=40)
SHARE = 0.9  # of the free slots
SPARE_CLIENTS = 10
STATEMENT_SECONDS = 3.0
BOUND_SECONDS = 10.0
LIGHT_LOAD_SECONDS = 0.2
IDLE_SECONDS = 1.0
SETTINGS = {"server_idle_seconds": str(IDLE_SECONDS)}


@dataclass(frozen=True)
class Reaction:
    """One burst. Seconds since its clients sent their statements."""

    slots_seconds: float
    connections_seconds: float


@dataclass(frozen=True)
class Reactions:
    """All bursts, by what the fleet was doing before."""

    awake: Sequence[Reaction]
    asleep: Sequence[Reaction]


def measure(program: PgbouncerProgram, repetitions: int, progress: Progress) -> Reactions:
    """Measure `repetitions` bursts of each kind, each on another task than the one before."""
    with (
        running_database(TERMS.budget + 40) as database,
        watching(database) as watch,
        running_fleet(database, program, TERMS, SETTINGS) as fleet,
    ):
        awake, asleep = [], []
        for number in range(repetitions + 1):
            progress(f"reaction {number} of {repetitions}: a burst while the fleet is awake, one while it is asleep")
            burst, *others = fleet.tasks[number % TERMS.tasks :] + fleet.tasks[: number % TERMS.tasks]
            with ExitStack() as stack:
                for task in (burst, *others):
                    stack.enter_context(light_load(task))
                time.sleep(1.0)
                watch.wait_until_free()
                found_awake = _burst(burst, watch)
            watch.wait_until_asleep()
            found_asleep = _burst(burst, watch)
            watch.wait_until_asleep()
            if number:  # the first one fills caches
                awake.append(found_awake)
                asleep.append(found_asleep)
    return Reactions(awake, asleep)


@contextmanager
def light_load(task: RunningTask) -> Iterator[None]:
    """Keep a task awake: a client of its own asks now and then."""
    over = threading.Event()

    def ask() -> None:
        with psycopg.connect(task.conninfo(), autocommit=True, prepare_threshold=None) as connection:
            while not over.wait(LIGHT_LOAD_SECONDS):
                connection.execute("select 1")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _burst(task: RunningTask, watch: Watch) -> Reaction:
    enough = round(SHARE * TERMS.slots)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(psycopg.connect(task.conninfo(), autocommit=True))
            for _ in range(TERMS.slots + TERMS.floor + SPARE_CLIENTS)
        ]
        if not watch.held() == 0:
            raise RuntimeError("slots were held before the burst")
        before = watch.pool_connections()
        began = time.monotonic()
        for client in clients:
            client.pgconn.send_query(f"select pg_sleep({STATEMENT_SECONDS})".encode())
        slots_seconds = connections_seconds = 0.0
        while not (slots_seconds and connections_seconds):
            now = time.monotonic() - began
            if now > BOUND_SECONDS:
                raise RuntimeError(f"90% of the slots were not taken and used {BOUND_SECONDS:g} s after the burst")
            if not slots_seconds and watch.held() >= enough:
                slots_seconds = time.monotonic() - began
            # Its own floor may be open already.
            if not connections_seconds and watch.pool_connections() >= before + enough:
                connections_seconds = time.monotonic() - began
            time.sleep(POLL_SECONDS)
        _await_all(clients)
    return Reaction(slots_seconds, connections_seconds)


def _await_all(clients: Sequence[psycopg.Connection[tuple[object, ...]]]) -> None:
    # Each to its end, as PgBouncer ends the server connection of a client that leaves in the middle.
    for client in clients:
        while client.pgconn.is_busy():
            select.select([client], [], [], BOUND_SECONDS)
            client.pgconn.consume_input()
        while client.pgconn.get_result():
            pass
