"""The goal, figures and plot of the proxy's overhead in the steady state."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.lines import Line
from benchmarks.plots import Plot, bars
from benchmarks.proxy.contenders import BARE, OURS, POOL_SIZE
from benchmarks.proxy.overhead_figures import GOAL_AGAINST_BARE, clients_text
from benchmarks.proxy.steady import TURN_SECONDS, Found, Steady
from benchmarks.section import Section
from benchmarks.series import ratios


def steady_section(found: Found, repetitions: int, seconds: int, machine: str) -> Section:
    """Return all that the page says of it."""
    return Section(
        title="Proxy overhead, in the steady state",
        claim="Once all clients are logged in and all connections open, the agent beside PgBouncer costs no "
        f"throughput: at least {GOAL_AGAINST_BARE} of a bare PgBouncer.",
        lines=[
            *_lines(found, "transactions/s", _rate, GOAL_AGAINST_BARE),
            *_lines(found, "the proxy's CPU of a transaction", _proxy_cpu, None),
        ],
        plots=[
            Plot(
                "The proxy's CPU of one transaction, in the steady state",
                "bars",
                "clients",
                "us",
                [
                    bars(name, {str(clients): list(map(_proxy_cpu, ways[name])) for clients, ways in found.items()})
                    for name in (OURS, BARE)
                ],
                note="Less is better. Of all processes of the proxy, emberpool's agent and supervisor included.",
            )
        ],
        method=(
            f"{repetitions} repetitions of {seconds} s for each way, in turns of {TURN_SECONDS:g} s in a random "
            "order: each way has a pgbench of its own (select-only, simple protocol), of which one runs at a time. "
            f"Both have {POOL_SIZE} server connections, TLS and SCRAM on both sides. CPU is that of all processes of "
            "the proxy in its own turns."
        ),
        machine=machine,
    )


def _rate(steady: Steady) -> float:
    return steady.transactions_per_second


def _proxy_cpu(steady: Steady) -> float:
    return steady.proxy_cpu_us


def _lines(found: Found, what: str, value: Callable[[Steady], float], at_least: float | None) -> list[Line]:
    return [
        Line(
            f"{what} against {BARE}, {clients_text(clients)}",
            "ratio",
            ratios([value(one) for one in ways[OURS]], [value(one) for one in ways[BARE]]),
            3,
            at_least=at_least,
        )
        for clients, ways in found.items()
    ]
