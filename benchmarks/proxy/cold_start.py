"""A storm of cold starts: clients that log in at once, each for one row, and then stay as idle environments do.

Each way is started anew for each storm, so that its pool is empty, too. The database allows 100 connections.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.command import Progress
from benchmarks.proxy.clients import ClientProcess, Storm, running_clients
from benchmarks.proxy.contenders import (
    BARE,
    DIRECT,
    OURS,
    Contender,
    direct,
    running_bare_pgbouncer,
    running_emberpool,
)
from benchmarks.proxy.secured_database import SecuredDatabase, running_secured_database

from emberpool_local.pgbouncer.program import PgbouncerProgram

MAX_CONNECTIONS = 100
BARE_RAISED = "bare PgBouncer, max_client_conn raised"
NAMES = (DIRECT, BARE, BARE_RAISED, OURS)
SPARE_CLIENTS = 100

Storms = Mapping[int, Mapping[str, list[Storm]]]


def measure(program: PgbouncerProgram, counts: Sequence[int], repetitions: int, progress: Progress) -> Storms:
    """Return the storms by their clients and by the way, repetition by repetition."""
    found: dict[int, dict[str, list[Storm]]] = {count: {name: [] for name in NAMES} for count in counts}
    with running_secured_database(MAX_CONNECTIONS) as database, running_clients() as clients:
        for repetition in range(1, repetitions + 1):
            for count, ways in found.items():
                progress(f"cold start {repetition} of {repetitions}: {count} clients")
                for name in random.sample(NAMES, len(NAMES)):
                    with _running(name, database, program, count) as contender:
                        ways[name].append(_storm(clients, contender, count))
    return found


def _storm(clients: ClientProcess, contender: Contender, count: int) -> Storm:
    try:
        return clients.connect(contender.target, count, asks=True)
    finally:
        clients.close()


@contextmanager
def _running(name: str, database: SecuredDatabase, program: PgbouncerProgram, count: int) -> Iterator[Contender]:
    if name == DIRECT:
        yield direct(database)
    elif name == OURS:
        with running_emberpool(database, program) as ours:
            yield ours
    else:
        settings = {"max_client_conn": str(count + SPARE_CLIENTS)} if name == BARE_RAISED else {}
        with running_bare_pgbouncer(database, program, settings, name) as bare:
            yield bare.contender()
