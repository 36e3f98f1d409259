"""Every benchmark's section is drawn from made-up measurements, without servers: what a run shows after minutes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from benchmarks.data.memory import FILLED, PARTS, Memory
from benchmarks.data.sections import memory_section, speed_section
from benchmarks.data.servers import RAW, SIGNED
from benchmarks.data.speed import Cell
from benchmarks.data.statements import STATEMENTS
from benchmarks.data.window import Load
from benchmarks.fleet import skew
from benchmarks.fleet.coordination import Cost, Costs
from benchmarks.fleet.reaction import Reaction, Reactions
from benchmarks.fleet.sections import cost_section, reaction_section, simulated_section, skew_section
from benchmarks.fleet.skew import Block as SkewBlock
from benchmarks.fleet.skew import Side
from benchmarks.layer import cold_start, import_time, warm_path
from benchmarks.layer.cold_start import ColdStart, Setting, Start
from benchmarks.layer.cores import Cores
from benchmarks.layer.sections import cold_start_section, imports_section, warm_path_section
from benchmarks.layer.warm_path import WarmPath
from benchmarks.page import bench_page
from benchmarks.scale.sections import scale_section
from benchmarks.section import Section, sections_from, sections_json
from benchmarks.whole_path.blocks import Block, Found
from benchmarks.whole_path.rig import EMBERPOOL, NAIVE, WARM
from benchmarks.whole_path.sections import path_section
from tests.local_stack.test_report import words

from emberpool_local.simulation.scale import ScaleResult

MACHINE = "a processor, 2 cores"


def shown(*sections: Section) -> str:
    """The words of the sections' page, drawn after a way through JSON."""
    again = sections_from(json.loads(json.dumps(sections_json(sections))))
    for section in again:
        assert section.plots, section.title
        assert section.method
    return words(bench_page(again))


def path_block(rate: float, failures: Sequence[str] = ()) -> Block:
    return Block(2.0, [1000 / rate] * round(rate * 2), failures)


def path_found(failures: Sequence[str] = ()) -> dict[float, Found]:
    blocks = {
        NAIVE: [path_block(20.0), path_block(30.0)],
        WARM: [path_block(200.0), path_block(210.0)],
        EMBERPOOL: [path_block(100.0), path_block(120.0, failures)],
    }
    return {delay: Found(blocks, [delay + 0.1, delay + 0.3]) for delay in (0.0, 1.0, 5.0)}


def test_whole_path_compares_within_a_repetition() -> None:
    """A ratio is that of the same repetition's blocks; latency and rates are by the delay."""
    section = path_section(path_found(), 10, 2.0, "namespaces", MACHINE)
    (line,) = (line for line in section.lines if line.what == "at 1 ms: emberpool's invocations/s against naive")
    assert line.values == [5.0, 4.0]
    rates, median, p99 = section.plots
    ours = {series.name: series for series in rates.series}[EMBERPOOL]
    assert (ours.x, ours.y, ours.low, ours.high) == ([0.0, 1.0, 5.0], [110.0] * 3, [100.0] * 3, [120.0] * 3)
    assert (median.title, p99.title) == ("Latency, median", "Latency, p99")
    assert "1 ms: 1.20 ms" in section.method
    assert "The whole path" in shown(section)


def test_failed_invocation_of_the_whole_path_is_a_missed_goal() -> None:
    """One failure in one block is on the page; the same block's latencies count the succeeded ones."""
    section = path_section(path_found(["OperationalError: gone"] * 3), 10, 2.0, "loopback", MACHINE)
    assert [line.what for line in section.missed] == [
        f"at {delay} ms: emberpool's failures in a block" for delay in (0, 1, 5)
    ]
    assert "Missed" in shown(section)


def test_way_that_failed_altogether_has_a_ratio() -> None:
    """Nothing succeeded is no division by zero."""
    found = path_found()
    nothing = Found({**found[0.0].blocks, NAIVE: [path_block(0.0001), path_block(0.0001)]}, [0.1])
    section = path_section({0.0: nothing}, 10, 2.0, "namespaces", MACHINE)
    assert min(section.lines[1].values) > 1000


def scale_result(tasks: int, seed: int, broken: str = "", converged: float | None = 2.0) -> ScaleResult:
    return ScaleResult(
        seed=seed,
        tasks=tasks,
        environments=200 * tasks,
        budget=10 * tasks,
        slots=7 * tasks,
        most_connections=9 * tasks,
        broken=broken,
        converged_seconds=converged,
        fairness=0.99,
        worst_task=0.8,
        slots_held=7 * tasks,
        moves=100,
        moves_per_slot_and_minute_at_the_end=0.1,
        views_per_second=40.0,
        queries_per_second=60.0,
        busiest_second_queries=99,
        steps=1000,
        transactions=1000,
        events=1000,
    )


def test_simulated_fleet_that_broke_a_promise_misses_its_goal() -> None:
    """A broken promise of one seed and a budget that was exceeded are both missed goals; unconverged is no zero."""
    fine = {tasks: [scale_result(tasks, 1), scale_result(tasks, 2)] for tasks in (20, 500)}
    assert not scale_section(fine, 60.0).missed
    over = replace(scale_result(500, 2, "above the budget", None), most_connections=5001)
    section = scale_section({**fine, 500: [over, over]}, 60.0)
    assert [line.what.split(": ")[1] for line in section.missed] == [
        "runs that broke a promise",
        "most connections at once, of the budget",
    ]
    assert section.plots[0].series[0].y == [2.0, 60.0]
    assert "500 tasks, 100,000 environments" in shown(section)


def test_layers_sections() -> None:
    """The layer's goals stand in its sections; a missed cold start is one."""
    durations = {
        warm_path.RAW: [100.0, 110.0],
        warm_path.LAYER: [112.0, 121.0],
        warm_path.LAYER_PIPELINED: [99.0, 99.0],
    }
    warm = WarmPath(durations, {warm_path.RAW: 3.0, warm_path.LAYER: 3.0, warm_path.LAYER_PIPELINED: 2.0}, 1000)
    together, apart = Cores(frozenset({0}), frozenset({0})), Cores(frozenset({0}), frozenset({1}))
    imports = {import_time.COMPILED: [100.0, 101.0], "without": [200.0, 210.0]}
    ways = {
        cold_start.USUAL: [Start(1000.0, 900.0)],
        "layer, slow": [Start(900.0, 800.0)],
        "layer, quick": [Start(400.0, 300.0)],
    }
    cold = ColdStart({Setting(0.0, "boto3"): ways}, {0.0: [0.1]})
    sections = (
        warm_path_section({together: warm, apart: warm}, MACHINE),
        imports_section(imports, MACHINE),
        cold_start_section(cold, MACHINE),
    )
    assert [len(section.missed) for section in sections] == [0, 0, 1]
    assert "layer, slow" in sections[2].missed[0].what
    assert [len(section.plots) for section in sections] == [2, 1, 1]
    text = shown(*sections)
    assert "Layer: the warm path" in text
    assert MACHINE in text


def test_fleets_sections() -> None:
    """Skewed load, reaction and costs have their lines and plots."""
    side = Side([100.0] * 12, [150.0] * 12)
    blocks = {name: [SkewBlock(side, side)] * 2 for name in (skew.SHARED, skew.BIG, skew.SPLIT)}
    burst = Reactions([Reaction(0.1, 0.7)], [Reaction(0.3, 0.9)])
    cost = Cost(4, 10.0, 2.0, 5.0, 0.5, 0.3, 40, 1.5)
    sections = (
        skew_section(blocks, MACHINE),
        reaction_section(burst, MACHINE),
        cost_section(Costs({4: {"fight": cost, "steady": cost}}, {"idle": 0.1}), MACHINE),
        simulated_section({"fight": cost}, MACHINE),
    )
    assert sections[0].lines[0].values == [1.0, 1.0]
    assert sections[0].plots[1].series[0].y == [150.0 - skew.HOLD_MS] * 3
    text = shown(*sections)
    for title in ("one budget under skewed load", "how fast slots follow a burst", "what the coordination costs"):
        assert title in text


def test_quiet_tasks_of_a_skewed_fleet_count_together() -> None:
    """Rates of the quiet tasks add up; their latency is the mean over transactions, and a silent second is no error."""
    together = skew._together([Side([10.0, 0.0], [100.0, 0.0]), Side([30.0, 0.0, 5.0], [200.0, 0.0, 1.0])])
    assert together.rates == [40.0, 0.0]
    assert together.latencies_ms == [pytest.approx(175.0), 0.0]


def progress(*seconds: float) -> str:
    return "".join(f"progress: {at} s, {100 + at:.1f} tps, lat {at:.3f} ms stddev 1.0, 0 failed\n" for at in seconds)


def test_late_lines_of_pgbench_do_not_move_the_measured_seconds() -> None:
    """Seconds in which the clients logged in count as empty, not as left out; with too few lines there is no result."""
    lead_in = skew.LEAD_IN_SECONDS
    seconds = lead_in + 4
    late = skew.side_of(progress(3.2, *range(4, seconds + 1)), seconds)
    assert late.rates[:2] == [0.0, 0.0]
    assert late.rates[lead_in:] == [100.0 + at for at in range(lead_in + 1, seconds + 1)]
    one_missing = skew.side_of(progress(*range(1, lead_in + 2), *range(lead_in + 3, seconds + 1)), seconds)
    assert one_missing.rates[lead_in + 1] == one_missing.rates[lead_in]
    assert skew.side_of(progress(*range(1, lead_in + 2)), seconds) is None


def test_data_endpoints_sections() -> None:
    """Every server is in the plots, psycopg without the CPU of a server that it does not have."""
    cells = [Cell(statement, connections) for statement in STATEMENTS for connections in (1, 32, 256)]
    for cell in cells:
        for name, loads in cell.loads.items():
            cpu = {} if name == RAW else {"server": 300.0, "PgBouncer": 30.0}
            loads += [Load(1000, 1.0, 2.0, 4.0, cpu), Load(1100, 1.0, 2.1, 4.2, cpu)]
    grown = Memory(50.0, [FILLED * part // 4 for part in range(1, PARTS + 1)], [60.0 + part for part in range(PARTS)])
    sections = (speed_section(cells, 2, 1.0, MACHINE), memory_section(grown, MACHINE))
    assert len(sections[0].plots) == 3 * len(STATEMENTS)
    rates, _, cpu = sections[0].plots[:3]
    assert {series.name for series in rates.series} - {series.name for series in cpu.series} == {RAW}
    assert next(series for series in rates.series if series.name == SIGNED).x == [1, 32, 256]
    assert "Data endpoint: memory" in shown(*sections)
