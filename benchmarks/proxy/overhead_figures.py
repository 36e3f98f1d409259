"""The goals, figures and plots of the proxy's overhead."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series, bars
from benchmarks.proxy.contenders import BARE, DIRECT, OURS, POOL_SIZE
from benchmarks.proxy.overhead import PROTOCOLS, WORKLOADS, Overhead
from benchmarks.proxy.pgbench import Block
from benchmarks.proxy.pgpool import NAME as PGPOOL
from benchmarks.section import Section
from benchmarks.series import Spread, ratios

GOAL_AGAINST_BARE = 0.97
GOAL_AGAINST_OTHERS = 1.0
MOST_PLOTTED_CPU_CLIENTS = 100

_Value = Callable[[Block], float]


def _rate(block: Block) -> float:
    return block.transactions_per_second


def _proxy_cpu(block: Block) -> float:
    return block.proxy_cpu_us


def _database_cpu(block: Block) -> float:
    return block.database_cpu_us


COMPARED: Sequence[tuple[str, _Value, Sequence[str]]] = (
    ("transactions/s", _rate, (BARE, PGPOOL, DIRECT)),
    ("the proxy's CPU of a transaction", _proxy_cpu, (BARE, PGPOOL)),
    ("the database's CPU of a transaction", _database_cpu, (DIRECT,)),
)


def overhead_section(found: Overhead, repetitions: int, seconds: int, machine: str) -> Section:
    """Return all that the page says of it."""
    return Section(
        title="Proxy overhead",
        claim="The agent beside PgBouncer costs no throughput: at least 0.97 of a bare PgBouncer with its defaults, "
        "and as much as any other pool or more. With more clients than connections also more than without a pool.",
        lines=overhead_lines(found),
        plots=overhead_plots(found),
        method=_method(found, repetitions, seconds),
        machine=machine,
    )


def overhead_lines(found: Overhead) -> list[Line]:
    """Return geometric means over all workloads and protocols, then each of them."""
    counts = sorted({cell.clients for cell in found.blocks})
    lines = [
        Line(
            f"{what} against {other}, {clients_text(clients)}",
            "ratio",
            values,
            3,
            at_least=_goal(other, clients) if value is _rate else None,
        )
        for what, value, others in COMPARED
        for other in others
        for clients in counts
        if (values := _means(found, clients, other, value))
    ]
    for cell in found.blocks:
        ways = found.compared(cell)
        if OURS in ways and BARE in ways:
            values = ratios([_rate(block) for block in ways[OURS]], [_rate(block) for block in ways[BARE]])
            lines.append(Line(f"transactions/s against {BARE}: {cell}", "ratio", values, 3))
    return lines


def _goal(other: str, clients: int) -> float | None:
    if other == BARE:
        return GOAL_AGAINST_BARE
    # With a connection for each client a pool is one more process on the way, whatever it does.
    return None if other == DIRECT and clients <= POOL_SIZE else GOAL_AGAINST_OTHERS


def _means(found: Overhead, clients: int, other: str, value: _Value) -> list[float]:
    """Return each repetition's geometric mean of our ratio to another way; empty where one was not measured."""
    by_cell = []
    for cell in found.blocks:
        ways = found.compared(cell)
        if cell.clients == clients and OURS in ways and other in ways:
            by_cell.append(ratios([value(block) for block in ways[OURS]], [value(block) for block in ways[other]]))
    return [statistics.geometric_mean(of_repetition) for of_repetition in zip(*by_cell, strict=True)]


def overhead_plots(found: Overhead) -> list[Plot]:
    """Return the throughput by clients, one plot for each workload and protocol, and the CPU of one transaction."""
    plots = [
        Plot(
            title=f"{workload}, {protocol}",
            kind="lines",
            x_title="clients",
            y_title="transactions/s",
            series=[
                series
                for name in (OURS, BARE, PGPOOL, DIRECT)
                if (series := _by_clients(found, name, workload, protocol)).x
            ],
            log_x=True,
            note="More is better. The lines are medians, the bars least to greatest.",
        )
        for workload in WORKLOADS
        for protocol in PROTOCOLS
    ]
    few = [clients for clients in {cell.clients for cell in found.blocks} if clients <= MOST_PLOTTED_CPU_CLIENTS]
    if few:
        plots += [_cpu_plot(found, max(few), workload) for workload in WORKLOADS]
    return plots


def _by_clients(found: Overhead, name: str, workload: str, protocol: str) -> Series:
    cells = [
        cell
        for cell in sorted(found.blocks)
        if (cell.workload, cell.protocol) == (workload, protocol) and found.blocks[cell].get(name)
    ]
    spreads = [Spread.of([_rate(block) for block in found.blocks[cell][name]]) for cell in cells]
    return Series(
        name,
        [cell.clients for cell in cells],
        [spread.median for spread in spreads],
        [spread.least for spread in spreads],
        [spread.greatest for spread in spreads],
    )


def _cpu_plot(found: Overhead, clients: int, workload: str) -> Plot:
    series = []
    for name in (OURS, BARE, PGPOOL):
        by_protocol = {
            cell.protocol: [_proxy_cpu(block) for block in ways[name]]
            for cell, ways in found.blocks.items()
            if (cell.clients, cell.workload) == (clients, workload) and ways.get(name)
        }
        if by_protocol:
            series.append(bars(name, by_protocol))
    return Plot(
        title=f"The proxy's CPU of one transaction: {workload}, {clients_text(clients)}",
        kind="bars",
        x_title="protocol",
        y_title="us",
        series=series,
        note="Less is better. Of all processes of the proxy, emberpool's agent and supervisor included.",
    )


def _method(found: Overhead, repetitions: int, seconds: int) -> str:
    missing = "".join(f" Not measured: {what}: {why}." for what, why in found.without.items())
    return (
        f"{repetitions} repetitions of each load, in each all ways in a random order; a block is {seconds} s of "
        "pgbench after a lead-in, on the same machine, with one thread (prepared TPC-B: one for each client). TLS and "
        f"SCRAM between clients, pool and PostgreSQL. emberpool and the bare PgBouncer have {POOL_SIZE} server "
        "connections and the same PgBouncer; the bare one has Debian's pgbouncer.ini with transactions "
        "as what it pools, TLS, and max_client_conn raised. "
        "pgpool-II has a process and a server connection for each client: it cannot share one between clients. The "
        "figures against another way are geometric means over the workloads and protocols, of the blocks of one "
        "repetition. CPU is that of all processes while all clients are at work, from /proc." + missing
    )


def clients_text(count: int) -> str:
    """Return the number with its noun."""
    return "1 client" if count == 1 else f"{count:,} clients"
