"""What is printed and what goes to the JSON file. Nothing is said that was not measured in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.layer import cold_start, import_time, warm_path
from benchmarks.layer.cold_start import ColdStart, Setting, Start
from benchmarks.layer.cores import Cores
from benchmarks.layer.warm_path import WarmPath
from benchmarks.series import Spread, differences, ratios
from rich.console import Console
from rich.table import Table

GOAL_OVERHEAD_US = 20.0
GOAL_COLD_START_RATIO = 0.6
OWN_IMPORTS_TEXT = {
    "powertools": "the function itself imports Powertools' Logger and Metrics",
    "boto3": "the function itself imports Powertools' Logger and Metrics, and makes a boto3 client of SQS",
}


def show_warm_path(console: Console, warm: WarmPath, cores: Cores) -> None:
    base = warm.durations_us[warm_path.RAW]
    table = Table(
        "Warm path: one invocation, one statement",
        "µs",
        "µs over raw",
        "ratio to raw",
        "round trips",
        title_justify="left",
    )
    for name, values in warm.durations_us.items():
        over = "" if name == warm_path.RAW else Spread.of(differences(values, base)).text(0, "+")
        ratio = Spread.of(ratios(values, base)).text(2)
        table.add_row(name, Spread.of(values).text(0), over, ratio, f"{warm.round_trips[name]:g}")
    console.print(table)
    _say(
        console,
        f"Medians of {len(base)} alternating repetitions (least to greatest), each the median of {warm.invocations} "
        f"invocations; {cores.text()}; PostgreSQL over loopback without TLS; round trips counted by a relay.",
    )
    for name in (warm_path.LAYER, warm_path.LAYER_PIPELINED):
        over_us = Spread.of(differences(warm.durations_us[name], base))
        extra = warm.round_trips[name] - warm.round_trips[warm_path.RAW]
        _say_goal(
            console,
            f"at most {GOAL_OVERHEAD_US:g} µs over raw and no extra round trip",
            f"{name}: {over_us.text(1, '+')} µs, {extra:+g} round trips",
            over_us.median <= GOAL_OVERHEAD_US and extra <= 0,
        )
    console.print()


def show_imports(console: Console, imports: Mapping[str, list[float]]) -> None:
    base = imports[import_time.COMPILED]
    table = Table(f"Import: {import_time.LAYER}", "ms", "ratio to with .pyc")
    for name, values in imports.items():
        table.add_row(name, Spread.of(values).text(0), Spread.of(ratios(values, base)).text(2))
    console.print(table)
    _say(console, f"Medians of {len(base)} alternating repetitions (least to greatest), a new interpreter each.")


def show_cold_start(console: Console, cold: ColdStart) -> None:
    for setting, ways in cold.starts.items():
        _show_setting(console, cold, setting, ways)
    count = len(next(iter(next(iter(cold.starts.values())).values())))
    _say(
        console,
        f"Medians of {count} alternating repetitions (least to greatest): the real runtime client in a new process "
        "each time, TLS (verify-full) and SCRAM to the local proxy, Secrets Manager simulated by moto over plain HTTP. "
        "The delay is of a round trip, half in each direction, to both of them.",
    )


def _show_setting(console: Console, cold: ColdStart, setting: Setting, ways: Mapping[str, Sequence[Start]]) -> None:
    measured = Spread.of(cold.measured_round_trips_ms[setting.round_trip_ms])
    _say(
        console,
        f"Cold start to the first row; {OWN_IMPORTS_TEXT[setting.own_imports]}; round trip delayed by "
        f"{setting.round_trip_ms:g} ms (measured through the relay: {measured.text(2)} ms)",
    )
    table = Table("", "ms from the process's start", "ratio", "ms from the handler's import", "ratio")
    base = ways[cold_start.USUAL]
    for name, starts in ways.items():
        table.add_row(name, *_cells(_process(starts), _process(base)), *_cells(_import(starts), _import(base)))
    console.print(table)
    for name, starts in ways.items():
        if name != cold_start.USUAL:
            ratio = Spread.of(ratios(_process(starts), _process(base)))
            goal = f"at most {GOAL_COLD_START_RATIO:g} of the usual way"
            _say_goal(console, goal, f"{name}: {ratio.text(2)}", ratio.median <= GOAL_COLD_START_RATIO)
    console.print()


def _cells(values: Sequence[float], base: Sequence[float]) -> tuple[str, str]:
    return Spread.of(values).text(0), Spread.of(ratios(values, base)).text(2)


def _process(starts: Sequence[Start]) -> list[float]:
    return [start.from_process_ms for start in starts]


def _import(starts: Sequence[Start]) -> list[float]:
    return [start.from_import_ms for start in starts]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _say_goal(console: Console, goal: str, measured: str, is_met: bool) -> None:
    _say(console, f"goal {'met' if is_met else 'MISSED'} ({goal}): {measured}")


def warm_path_json(warm: WarmPath) -> dict[str, Any]:
    over_us = differences(warm.durations_us[warm_path.LAYER], warm.durations_us[warm_path.RAW])
    return {
        "durations_us": dict(warm.durations_us),
        "round_trips": dict(warm.round_trips),
        "baseline": warm_path.RAW,
        "goal_overhead_us": GOAL_OVERHEAD_US,
        "overhead_us": over_us,
    }


def imports_json(imports: Mapping[str, list[float]]) -> dict[str, Any]:
    return {"ms": dict(imports), "baseline": import_time.COMPILED}


def cold_start_json(cold: ColdStart) -> dict[str, Any]:
    return {
        "baseline": cold_start.USUAL,
        "goal_ratio": GOAL_COLD_START_RATIO,
        "measured_round_trips_ms": {str(delay): values for delay, values in cold.measured_round_trips_ms.items()},
        "settings": [
            {
                "delay_ms": setting.round_trip_ms,
                "own_imports": setting.own_imports,
                "from_process_ms": {name: _process(starts) for name, starts in ways.items()},
                "from_import_ms": {name: _import(starts) for name, starts in ways.items()},
            }
            for setting, ways in cold.starts.items()
        ],
    }
