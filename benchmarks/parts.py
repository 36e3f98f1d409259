"""The benchmarks that `python -m benchmarks` runs one after the other, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One benchmark: `python -m MODULE`; `quick` are the arguments of a short run that shows only that it works."""

    module: str
    quick: Sequence[str]


PARTS: Mapping[str, Part] = {
    "layer": Part(
        "benchmarks.layer",
        ("--repetitions", "2", "--cold-repetitions", "1", "--invocations", "100", "--delay-ms", "0"),
    ),
    "proxy": Part("benchmarks.proxy", ("--quick",)),
    "fleet": Part("benchmarks.fleet", ("--repetitions", "1", "--block-seconds", "10", "--cost-seconds", "2")),
    "data": Part(
        "benchmarks.data", ("--only", "speed", "--repetitions", "1", "--block-seconds", "0.3", "--connections", "1")
    ),
    "path": Part("benchmarks.whole_path", ("--repetitions", "1", "--block-seconds", "1")),
    "scale": Part("benchmarks.scale", ("--tasks", "10", "20", "--seeds", "1", "--virtual-seconds", "25")),
    "cost": Part("benchmarks.cost", ()),
}
