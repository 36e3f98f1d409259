"""What emberpool adds to the very same PgBouncer: its task against PgBouncer alone on a copy of the task's files."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.command import Progress
from benchmarks.plots import Plot, bars
from benchmarks.proxy import storms, tables, throughput
from benchmarks.proxy.pair import running_database
from benchmarks.proxy.throughput import Throughput
from benchmarks.section import Section

from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram

BLOCK_SECONDS = 1


@dataclass(frozen=True)
class Terms:
    """How many blocks of pgbench, how many storms of how many clients, and how long the agent is watched."""

    blocks: int
    storms: int
    clients: int
    hold_seconds: float


def measured_section(program: PgbouncerProgram, terms: Terms, machine: str, progress: Progress) -> Section:
    """Measure, and return all that the page says of it."""
    with running_database() as database, TempFolder("bench") as folder:
        progress(f"agent: {terms.blocks} blocks of pgbench on each of three")
        rates = throughput.measure(database, program, folder, terms.blocks, BLOCK_SECONDS)
        progress(f"agent: {terms.storms} storms of {terms.clients} clients on each of two")
        held = storms.measure(database, program, terms.storms, terms.clients, terms.hold_seconds)
    return Section(
        title="What the agent costs",
        claim="A task is PgBouncer with an agent beside it: against the same PgBouncer on the same files, it costs "
        "next to nothing.",
        lines=[*tables.throughput_lines(rates), *tables.storm_lines(held, terms.clients)],
        plots=[_cpu_plot(rates)],
        method=(
            f"Throughput: {terms.blocks} alternating blocks of {BLOCK_SECONDS} s by pgbench ({throughput.CLIENTS} "
            f"clients, 20 server connections; {'with' if rates.tls else 'without'} TLS to the clients, none to the "
            f"database). Logins and memory: {terms.storms} alternating storms, each on processes started anew, from "
            "one process of clients on the same machine, which costs more CPU than what it measures; memory is "
            "resident, what processes share counts for each. What else runs on the machine hits rates and the start "
            "more than CPU and memory."
        ),
        machine=machine,
    )


def _cpu_plot(found: Throughput) -> Plot:
    series = [
        bars(
            name,
            {
                workload: [block.cpu_us_per_transaction for block in pools[name]]
                for workload, pools in found.by_workload.items()
            },
        )
        for name in (throughput.OURS, throughput.BARE, throughput.RESET)
    ]
    return Plot(
        "CPU of one transaction, the agent's included",
        "bars",
        "",
        "us",
        series,
        note="Less is better. The bare PgBouncer runs on the files that emberpool has written.",
    )
