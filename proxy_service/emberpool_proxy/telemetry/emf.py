"""Metrics to CloudWatch through the log: one line a minute in CloudWatch's embedded metric format (EMF).

The line goes to standard output, which the awslogs driver delivers; CloudWatch makes metrics of it, and no call to an
API is needed. Its specification: CloudWatch's user guide, "Embedded metric format specification".

The one dimension is the service. CloudWatch asks its price for each metric *and* combination of dimensions: the task's
id as a dimension would make all of them anew with every task of every deployment. It stands beside them as a property,
so that Logs Insights still tells the tasks apart, and the statistics over the tasks (Sum, Maximum) make the fleet's
number.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from emberpool_proxy.metrics import BY_NAME, CLOUDWATCH_METRICS, SERVICE_DIMENSION, CloudWatchMetric, Labels
from emberpool_proxy.telemetry.samples import Sample

PERIOD_SECONDS = 60.0
MILLISECONDS = 1000

Values = Mapping[tuple[str, Labels], float]


class EmfLog:
    """Writes one line of metrics a minute: `current` are the samples, `service` is the fleet, `task` is this task."""

    def __init__(
        self,
        current: Callable[[], Iterable[Sample]],
        namespace: str,
        service: str,
        task: str,
        stream: TextIO | None = None,
    ) -> None:
        self._current = current
        self._namespace = namespace
        self._service = service
        self._task = task
        self._stream = stream
        self._last: Values = {}

    async def run(self) -> None:
        """Write a line each minute until cancelled, and one at the end: a drain's last seconds count, too."""
        self._last = self._values()  # a counter's past before the agent started is not this minute's
        try:
            while True:
                await asyncio.sleep(PERIOD_SECONDS)
                self.write()
        finally:
            self.write()

    def write(self) -> None:
        """Write one line now."""
        stream = self._stream or sys.stdout
        stream.write(self.line(time.time()) + "\n")
        stream.flush()

    def line(self, now: float) -> str:
        """Return the line for the time since the last one; `now` is in seconds since 1970."""
        values, last = self._values(), self._last
        self._last = values
        numbers = {
            metric.name: number
            for metric in CLOUDWATCH_METRICS
            if (number := _number(metric, values, last)) is not None
        }
        directive = {
            "Namespace": self._namespace,
            "Dimensions": [[SERVICE_DIMENSION]],
            "Metrics": [
                {"Name": metric.name, "Unit": metric.unit} for metric in CLOUDWATCH_METRICS if metric.name in numbers
            ],
        }
        return json.dumps(
            {
                "_aws": {"Timestamp": int(now * MILLISECONDS), "CloudWatchMetrics": [directive]},
                SERVICE_DIMENSION: self._service,
                "Task": self._task,
                **numbers,
            }
        )

    def _values(self) -> Values:
        return {(name, labels): value for name, labels, value in self._current()}


def _number(metric: CloudWatchMetric, values: Values, last: Values) -> float | None:
    """Return the metric's number, or None when nothing is known for it."""
    if metric.how in ("increase", "average"):
        grown = [_increase(name, values, last) for name in metric.of]
        if metric.how == "increase":
            return grown[0]
        time_spent, count = grown
        return round(time_spent / count * metric.factor, 3) if time_spent is not None and count else None
    found = [value for (name, labels), value in values.items() if name in metric.of and _matches(metric, labels)]
    if not found:
        return None
    match metric.how:
        case "max":
            return max(found)
        case "min":
            return min(found)
        case _:
            return sum(found)


def _increase(name: str, values: Values, last: Values) -> float | None:
    """Sum what each series grew by; one that is smaller than before began at 0 again."""
    grown = [
        value - before if value >= (before := last.get(key, 0)) else value
        for key, value in values.items()
        if key[0] == name
    ]
    return sum(grown) if grown else None


def _matches(metric: CloudWatchMetric, labels: Labels) -> bool:
    names = BY_NAME[metric.of[0]].labels
    given = dict(zip(names, labels, strict=True))
    return all(given[name] == value for name, value in metric.only)
