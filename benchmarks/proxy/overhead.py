"""What a pool in the way costs: pgbench directly, over a bare PgBouncer, emberpool's task and pgpool-II, in turns.

All of it with TLS and SCRAM. The two PgBouncers pool 20 server connections; pgpool-II and direct clients have one
for each client. The load shares the machine with what it measures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.command import Progress
from benchmarks.proxy.contenders import (
    BARE,
    OURS,
    Contender,
    direct,
    running_bare_pgbouncer,
    running_emberpool,
)
from benchmarks.proxy.pgbench import Block, Cpu, pgbench_path, run_block
from benchmarks.proxy.pgpool import find_pgpool, running_pgpool
from benchmarks.proxy.secured_database import SecuredDatabase, running_secured_database

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.pgbouncer.program import PgbouncerProgram

TPC_B, PREPARED = "TPC-B-like", "prepared"
WORKLOADS: Mapping[str, str] = {"select-only": "select-only", TPC_B: "tpcb-like"}
PROTOCOLS = ("simple", "extended", PREPARED)
SCALE = 20  # as many branches as server connections: those of TPC-B do not wait for each other's row
SPARE_CONNECTIONS = 100
MOST_BARE_CLIENTS = 5100  # the default of 100 would refuse the others


@dataclass(frozen=True, order=True)
class Cell:
    """One load."""

    clients: int
    workload: str
    protocol: str

    @property
    def arguments(self) -> list[str]:
        # pgbench's thread waits while a client prepares a statement, and prepares in the middle of transactions: in a
        # thread together with others a client may wait for the connection of one whose turn never comes.
        jobs = self.clients if (self.workload, self.protocol) == (TPC_B, PREPARED) else 1
        return [f"--builtin={WORKLOADS[self.workload]}", f"--protocol={self.protocol}", f"--jobs={jobs}"]

    def __str__(self) -> str:
        return f"{self.workload}, {self.protocol}, {self.clients} client{'s' * (self.clients > 1)}"


@dataclass
class Overhead:
    """The blocks by load and way, repetition by repetition, and what could not be measured, with the reason."""

    blocks: dict[Cell, dict[str, list[Block]]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def compared(self, cell: Cell) -> dict[str, list[Block]]:
        """Return the ways that were measured in all repetitions of a load."""
        ways = self.blocks[cell]
        most = max(len(blocks) for blocks in ways.values())
        return {name: blocks for name, blocks in ways.items() if len(blocks) == most}


def measure(
    program: PgbouncerProgram,
    client_counts: Sequence[int],
    repetitions: int,
    seconds: int,
    progress: Progress,
) -> Overhead:
    """Measure all loads on all ways. Raises RuntimeError when emberpool or the bare PgBouncer fails a client."""
    found = Overhead()
    with running_secured_database(2 * max(client_counts) + SPARE_CONNECTIONS) as database:
        pgbench = pgbench_path(database.postgres.program)
        database.fill(SCALE)
        with _running_all(database, program, max(client_counts), found, progress) as contenders:
            for repetition in range(1, repetitions + 1):
                for cell in _cells(client_counts):
                    progress(f"overhead {repetition} of {repetitions}: {cell}")
                    ways = found.blocks.setdefault(cell, {each.name: [] for each in contenders})
                    for contender in random.sample(contenders, len(contenders)):
                        cpu = Cpu(contender.cpu_seconds, database.cpu_seconds)
                        try:
                            block = run_block(
                                pgbench, contender.environment(), cell.clients, seconds, cell.arguments, cpu
                            )
                        except RuntimeError as error:
                            if contender.name in (OURS, BARE):
                                raise RuntimeError(f"{contender.name}, {cell}: {error}") from error
                            found.without[f"{contender.name}, {cell}"] = str(error)
                            progress(f"{contender.name}, {cell}: {error}")
                        else:
                            ways[contender.name].append(block)
    return found


def _cells(client_counts: Sequence[int]) -> Iterator[Cell]:
    for clients in client_counts:
        for workload in WORKLOADS:
            for protocol in PROTOCOLS:
                yield Cell(clients, workload, protocol)


@contextmanager
def _running_all(
    database: SecuredDatabase,
    program: PgbouncerProgram,
    most_clients: int,
    found: Overhead,
    progress: Progress,
) -> Iterator[list[Contender]]:
    with (
        running_bare_pgbouncer(database, program, {"max_client_conn": str(MOST_BARE_CLIENTS)}) as bare,
        running_emberpool(database, program) as ours,
    ):
        contenders = [direct(database), bare.contender(), ours]
        try:
            package = find_pgpool(progress)
        except SystemPackagesMissing as error:
            found.without["pgpool-II"] = f"{error.problem}. {error.next_step}"
            progress(f"without pgpool-II: {error.problem}\n next: {error.next_step}")
            yield contenders
            return
        with running_pgpool(package, database, most_clients) as pgpool:
            yield [*contenders, pgpool]
