"""What the proxy's benchmarks make of measurements, here made-up ones: a miss is told as a miss."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.proxy import recovery
from benchmarks.proxy.clients import Storm
from benchmarks.proxy.cold_start import BARE_RAISED, NAMES
from benchmarks.proxy.cold_start_figures import cold_start_section
from benchmarks.proxy.contenders import BARE, DIRECT, OURS
from benchmarks.proxy.observation import Recovery, recovery_seconds
from benchmarks.proxy.overhead import Cell, Overhead
from benchmarks.proxy.overhead_figures import overhead_section
from benchmarks.proxy.pgbench import Block
from benchmarks.proxy.pgpool import NAME as PGPOOL
from benchmarks.proxy.processes import cpu_seconds_of
from benchmarks.proxy.recovery_figures import recovery_section
from benchmarks.proxy.replacement import lost_seconds
from benchmarks.proxy.steady import Steady
from benchmarks.proxy.steady_figures import steady_section
from benchmarks.section import Section
from benchmarks.series import Spread

FORMER = 400.0
FAULT, END = 100.0, 110.0


def beats(*spans: tuple[float, float, float]) -> list[float]:
    """Return what was served: (from, to, how many a second), spread evenly."""
    return [
        begin + (number + 0.5) / rate
        for begin, end, rate in spans
        if rate
        for number in range(round((end - begin) * rate))
    ]


def test_recovery_is_the_end_of_the_outage() -> None:
    """Nothing for 0.7 s, then all: recovered after 0.7 s, give or take a step and the 1% that may miss."""
    served = beats((90, FAULT, FORMER), (FAULT + 0.7, END, FORMER))
    assert recovery_seconds(served, FORMER, FAULT, END) == pytest.approx(0.7, abs=0.025)


def test_what_is_served_in_part_has_not_recovered() -> None:
    """A pool that serves 97% for five seconds has recovered after five seconds, not at once."""
    served = beats((FAULT, FAULT + 5, 0.97 * FORMER), (FAULT + 5, END, FORMER))
    assert recovery_seconds(served, FORMER, FAULT, END) == pytest.approx(5.0, abs=0.4)


def test_recovery_that_does_not_last_is_none() -> None:
    """What was served after the outage for half a second only, and not again, is not known to have recovered."""
    served = beats((FAULT + 0.2, FAULT + 0.7, FORMER))
    assert recovery_seconds(served, FORMER, FAULT, END) is None


def test_moment_without_answers_is_lost_in_a_replacement() -> None:
    """0.6 s without an answer in the middle are 0.6 s lost; with all served, nothing is."""
    gap = beats((FAULT, FAULT + 4, FORMER), (FAULT + 4.6, END, FORMER))
    assert lost_seconds(gap, FORMER, FAULT, END) == pytest.approx(0.6, abs=0.05)
    assert lost_seconds(beats((FAULT, END, FORMER)), FORMER, FAULT, END) == 0.0


def block(rate: float, cpu: float = 30.0) -> Block:
    return Block(rate, 1.0, cpu, 80.0)


def overhead_of(ours: float, clients: int, **others: float) -> Section:
    found = Overhead()
    for protocol in ("simple", "prepared"):
        ways = {OURS: [block(ours)] * 3, BARE: [block(100.0)] * 3, DIRECT: [block(90.0)] * 3, PGPOOL: [block(50.0)] * 3}
        for name, rate in others.items():
            ways[{"pgpool": PGPOOL, "direct": DIRECT}[name]] = [block(rate)] * 3
        found.blocks[Cell(clients, "select-only", protocol)] = ways
    return overhead_section(found, 3, 2, "a machine")


@pytest.mark.parametrize(("ours", "is_met"), [(97.5, True), (96.5, False)])
def test_steady_overhead_is_missed_below_its_goal(ours: float, is_met: bool) -> None:
    """The same goal, of the median of the repetitions' ratios."""
    found = {10: {OURS: [Steady(ours, 33.0), Steady(50.0, 30.0), Steady(ours, 33.0)], BARE: [Steady(100.0, 30.0)] * 3}}
    rate, cpu = steady_section(found, 3, 5, "a machine").lines
    assert rate.is_met is is_met
    assert Spread.of(cpu.values).median == pytest.approx(1.1)


@pytest.mark.parametrize(("ours", "is_met"), [(97.5, True), (96.5, False)])
def test_overhead_is_missed_below_its_goal(ours: float, is_met: bool) -> None:
    """3.5% less than the bare PgBouncer misses the goal, 2.5% less does not."""
    section = overhead_of(ours, 100)
    (line,) = (line for line in section.lines if line.at_least == 0.97)
    assert line.is_met is is_met
    assert [plot.title for plot in section.plots if plot.kind == "bars"]


def test_direct_is_a_goal_only_with_more_clients_than_connections() -> None:
    """With 100 clients a pool must not be slower than none; with 10 it is one more process on the way."""
    goals = {
        clients: [line.is_met for line in overhead_of(100.0, clients, direct=200.0).lines if DIRECT in line.what]
        for clients in (10, 100)
    }
    assert False in goals[100]
    assert False not in goals[10]


def test_way_that_failed_a_client_is_not_compared_and_is_named() -> None:
    """pgpool-II lost a block: no ratio is made of what is left, and the method says why."""
    found = Overhead()
    cell = Cell(100, "select-only", "simple")
    found.blocks[cell] = {OURS: [block(100.0)] * 3, BARE: [block(100.0)] * 3, PGPOOL: [block(10.0)] * 2}
    found.without[f"{PGPOOL}, {cell}"] = "client 7 aborted"
    section = overhead_section(found, 3, 2, "a machine")
    assert not [line for line in section.lines if PGPOOL in line.what]
    assert "client 7 aborted" in section.method


def test_one_failed_client_of_a_storm_misses_the_goal() -> None:
    """One of 1,000 is refused in one of three storms: the median is 0, and the goal is missed all the same."""
    moments = [number / 50 for number in range(101)]
    well, refused = Storm(1000, 2.0, {}, moments), Storm(1000, 2.0, {"refused": 1}, moments)
    found = {1000: {name: [well] * 3 for name in NAMES} | {OURS: [well, refused, well]}}
    section = cold_start_section(found, 3, "a machine")
    assert section.missed
    assert all("failed" in line.what for line in section.missed)


def test_storm_slower_than_the_bare_pgbouncer_misses_the_goal() -> None:
    """The last row after 3 s where the bare PgBouncer's is after 2 s."""
    slow, fast = (Storm(1000, last, {}, [last * part / 100 for part in range(101)]) for last in (3.0, 2.0))
    found = {1000: {name: [fast] for name in NAMES} | {OURS: [slow]}}
    (line,) = cold_start_section(found, 1, "a machine").missed
    assert BARE_RAISED in line.what


def test_every_fault_has_its_words() -> None:
    """Each fault of the recovery has a line with a goal and a plot."""
    seen = Recovery(0.4, 3, [400.0] * 20)
    found = {fault: {name: [seen] for name in recovery.NAMES} for fault in recovery.FAULTS}
    section = recovery_section(found, 1, 3.0, "a machine")
    goals = [line for line in section.lines if line.at_most is not None]
    assert len(goals) == len(recovery.FAULTS) == len(section.plots)


def test_processor_time_of_children_counts() -> None:
    """A process that only waits for its child, which works, has used what the child has."""
    work = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True); input()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_seconds_of(process.pid) >= 0.2
        process.communicate("\n")
