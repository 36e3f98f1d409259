"""What was measured, repetition by repetition, and the ratio of two such series."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of the repetitions, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int, sign: str = "") -> str:
        form = f"{sign}.{digits}f"
        return f"{self.median:{form}} ({self.least:{form}} to {self.greatest:{form}})"


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return each repetition's ratio to the same repetition's baseline: what slows the machine slows both."""
    return [one / base for one, base in zip(values, baseline, strict=True)]


def differences(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return each repetition's difference to the same repetition's baseline."""
    return [one - base for one, base in zip(values, baseline, strict=True)]
