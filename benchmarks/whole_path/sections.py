"""What the whole path showed, as lines and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.lines import Line
from benchmarks.plots import Plot, Series
from benchmarks.section import Section
from benchmarks.series import Spread, ratios
from benchmarks.whole_path.blocks import Block, Found
from benchmarks.whole_path.rig import EMBERPOOL, NAIVE, WARM

Figure = Callable[[Block], float]


def path_section(
    found: Mapping[float, Found], environments: int, seconds: float, network: str, machine: str
) -> Section:
    """Return the section: rates and latencies by the delay."""
    return Section(
        "The whole path",
        "Invocations of real execution environments over a network with a delay: a connection for each invocation "
        "(naive), the layer's warm one straight to the database (warm only), and the layer through the proxy "
        "(emberpool), which has a second hop with the same delay. There are connections for all here: what happens "
        "when there are not is what make demo shows. Wanted: no failure.",
        lines(found),
        [
            _plot(found, "Invocations a second", "1/s", lambda block: block.rate, "Higher is better."),
            _plot(found, "Latency, median", "ms", lambda block: block.at(50), "Lower is better."),
            _plot(found, "Latency, p99", "ms", lambda block: block.at(99), "Lower is better."),
        ],
        _method(found, environments, seconds, network),
        machine,
    )


def _method(found: Mapping[float, Found], environments: int, seconds: float, network: str) -> str:
    repetitions = len(next(iter(found.values())).blocks[EMBERPOOL])
    round_trips = ", ".join(
        f"{delay:g} ms: {Spread.of(one.round_trips_ms).median:.2f} ms" for delay, one in found.items()
    )
    return (
        f"{environments} environments of AWS's own runtime client, each with its next invocation as soon as it has "
        f"answered: one transaction of two statements. {repetitions} alternating blocks of {seconds:g} s of each way "
        "and delay; medians, least and greatest. TLS (verify-full) and SCRAM on every hop. The delay is a "
        "round trip's on each of the three ways: functions to database, functions to proxy, proxy to database; "
        f"measured to the database: {round_trips}. What delays is the failure lab's network ({network}); at 0 ms "
        "nothing is between them. All share this machine's cores."
    )


def lines(found: Mapping[float, Found]) -> list[Line]:
    """Return the figures and the ratios of each repetition, delay by delay."""
    shown = []
    for delay, measured in found.items():
        ours = measured.blocks[EMBERPOOL]
        where = f"at {delay:g} ms"
        failed = [float(len(block.failures)) for block in ours]
        shown.append(Line(f"{where}: emberpool's failures in a block", "", failed, 0, at_most=0))
        for other in (NAIVE, WARM):
            rate = ratios(_rates(ours), _rates(measured.blocks[other]))
            shown.append(Line(f"{where}: emberpool's invocations/s against {other}", "ratio", rate, 2))
        for name, blocks in measured.blocks.items():
            shown.append(Line(f"{where}: {name}", "1/s", _rates(blocks), 0))
            for percent in (50, 99):
                latencies = [block.at(percent) for block in blocks]
                shown.append(Line(f"{where}: {name}, p{percent}", "ms", latencies, 1))
    return shown


def _plot(found: Mapping[float, Found], title: str, unit: str, figure: Figure, note: str) -> Plot:
    series = []
    for name in next(iter(found.values())).blocks:
        spreads = [Spread.of([figure(block) for block in measured.blocks[name]]) for measured in found.values()]
        series.append(
            Series(
                name,
                list(found),
                [spread.median for spread in spreads],
                [spread.least for spread in spreads],
                [spread.greatest for spread in spreads],
            )
        )
    return Plot(title, "lines", "delay of a round trip, ms", unit, series, note=note)


def _rates(blocks: Sequence[Block]) -> list[float]:
    return [max(block.rate, 0.001) for block in blocks]  # a way that failed altogether has a ratio, too
