"""Writes one line in CloudWatch's Embedded Metric Format, through Powertools where the function has loaded it.

Opens no connection to CloudWatch: Lambda's log is the way there. Never imports Powertools.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from emberpool.metrics import DIMENSION, NAMESPACE, Metric
from emberpool.settings import METRICS, LayerSettings

LARGEST_ARRAY = 100  # values of one metric in a line; CloudWatch drops lines with more

Values = Mapping[Metric, Sequence[float]]
Properties = Mapping[str, str]


def write(values: Values, properties: Properties, function_name: str | None) -> None:
    """Write the values, at most 100 of each metric, and beside them properties that are searchable but no metrics.

    Writes nothing when EMBERPOOL_METRICS is off, nor outside of Lambda, where nobody collects the lines.
    """
    name = function_name or os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    is_off = (os.environ.get(METRICS) or LayerSettings.metrics) == "off"
    if is_off or "AWS_LAMBDA_FUNCTION_NAME" not in os.environ or not name:
        return
    # Asked for each time, as a function may load it late; without the class it is half loaded or too old.
    powertools = getattr(sys.modules.get("aws_lambda_powertools.metrics"), "EphemeralMetrics", None)
    if powertools is None:
        _write_line(values, properties, name)
    else:
        _write_through_powertools(powertools, values, properties, name)


def _write_line(values: Values, properties: Properties, function_name: str) -> None:
    line = {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    "Dimensions": [[DIMENSION]],
                    "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in values],
                }
            ],
        },
        DIMENSION: function_name,
        **properties,
        **{metric.name: list(numbers) for metric, numbers in values.items()},
    }
    # One write with its newline: print makes two, and Lambda may take them for two log events.
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _write_through_powertools(
    ephemeral_metrics: Any, values: Values, properties: Properties, function_name: str
) -> None:
    # Ephemeral: all instances of Metrics share one set, in which the user's own metrics wait for their line.
    # The empty service keeps Powertools from adding its dimension: an alarm must not depend on who wrote the line.
    metrics = ephemeral_metrics(namespace=NAMESPACE, service="")
    metrics.add_dimension(DIMENSION, function_name)
    for key, value in properties.items():
        metrics.add_metadata(key, value)
    for metric, numbers in values.items():
        for number in numbers:
            metrics.add_metric(metric.name, metric.unit, number)
    metrics.flush_metrics()
