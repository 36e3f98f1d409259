"""The layer's sections of the page: the same figures as `tables` prints, as lines with goals and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.layer import cold_start, import_time, warm_path
from benchmarks.layer.cold_start import ColdStart, Start
from benchmarks.layer.cores import Cores
from benchmarks.layer.tables import GOAL_COLD_START_RATIO, GOAL_OVERHEAD_US, OWN_IMPORTS_TEXT
from benchmarks.layer.warm_path import WarmPath
from benchmarks.lines import Line
from benchmarks.plots import Plot, bars
from benchmarks.section import Section
from benchmarks.series import differences, ratios


def warm_path_section(found: Mapping[Cores, WarmPath], machine: str) -> Section:
    """Return what an invocation with one statement costs, for each placement of the servers."""
    warm = next(iter(found.values()))
    repetitions = len(warm.durations_us[warm_path.RAW])
    return Section(
        "Layer: the warm path",
        "One invocation with one statement, against raw psycopg over a global connection without any check and against "
        f"what people add to it. Wanted: at most {GOAL_OVERHEAD_US:g} µs more than raw, and no round trip more.",
        [line for cores, measured in found.items() for line in _warm_lines(cores, measured)],
        [_warm_plot(cores, measured) for cores, measured in found.items()],
        f"Medians of {repetitions} alternating repetitions, each the median of {warm.invocations} invocations; all in "
        "one process; PostgreSQL over loopback without TLS; round trips counted by a relay.",
        machine,
    )


def imports_section(imports: Mapping[str, list[float]], machine: str) -> Section:
    """Return what the layer's import takes, with its compiled files and without."""
    base = imports[import_time.COMPILED]
    return Section(
        "Layer: the import",
        f'What "{import_time.LAYER}" takes in a new interpreter, with the compiled files that the layer ships and '
        "without.",
        [Line(f"{name}: against with .pyc", "ratio", ratios(values, base), 2) for name, values in imports.items()],
        [Plot("Import", "bars", "", "ms", [bars("import", imports)])],
        f"Medians of {len(base)} alternating repetitions, a new interpreter each.",
        machine,
    )


def cold_start_section(cold: ColdStart, machine: str) -> Section:
    """Return how long a new environment takes to its first row, against the usual way."""
    count = len(next(iter(next(iter(cold.starts.values())).values())))
    lines, plots = [], []
    for setting, ways in cold.starts.items():
        where = f"{OWN_IMPORTS_TEXT[setting.own_imports]}; round trip {setting.round_trip_ms:g} ms"
        base = _process(ways[cold_start.USUAL])
        for name, starts in ways.items():
            if name != cold_start.USUAL:
                ratio = ratios(_process(starts), base)
                lines.append(Line(f"{name}: {where}", "ratio", ratio, 2, at_most=GOAL_COLD_START_RATIO))
        processes = {name: _process(starts) for name, starts in ways.items()}
        title = f"To the first row, {setting.own_imports}, round trip {setting.round_trip_ms:g} ms"
        plots.append(Plot(title, "bars", "", "ms from the process's start", [bars("ms", processes)]))
    return Section(
        "Layer: the cold start",
        "From the start of a new environment's process to its first row, TLS and SCRAM included, against the usual way "
        f"(boto3 reads the secret, psycopg connects). Wanted: at most {GOAL_COLD_START_RATIO:g} of the usual way.",
        lines,
        plots,
        f"Medians of {count} alternating repetitions: the real runtime client in a new process each time, TLS "
        "(verify-full) and SCRAM to the local proxy, Secrets Manager simulated by moto over plain HTTP. The delay is "
        "of a round trip, half in each direction, to both of them.",
        machine,
    )


def _warm_lines(cores: Cores, warm: WarmPath) -> list[Line]:
    base = warm.durations_us[warm_path.RAW]
    lines = []
    for name, values in warm.durations_us.items():
        if name == warm_path.RAW:
            continue
        ours = name in {warm_path.LAYER, warm_path.LAYER_PIPELINED}
        goal = GOAL_OVERHEAD_US if ours else None
        what = f"{name}, over raw psycopg; {cores.text()}"
        lines.append(Line(what, "µs", differences(values, base), 1, at_most=goal))
        trips = [warm.round_trips[name] - warm.round_trips[warm_path.RAW]]
        lines.append(Line(f"{name}: further round trips; {cores.text()}", "", trips, 2, at_most=0 if ours else None))
    return lines


def _warm_plot(cores: Cores, warm: WarmPath) -> Plot:
    return Plot("An invocation", "bars", "", "µs", [bars("µs", warm.durations_us)], note=cores.text())


def _process(starts: Sequence[Start]) -> list[float]:
    return [start.from_process_ms for start in starts]
