"""`/metrics`, rendered by the official Prometheus client from the samples at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from emberpool_proxy.metrics import METRICS
from emberpool_proxy.telemetry.samples import Sample


class _SampleCollector(Collector):
    def __init__(self, current: Callable[[], Iterable[Sample]]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in METRICS:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            families[metric.name] = family(metric.name, metric.help, labels=metric.labels)
        for name, labels, value in self._current():
            families[name].add_metric(labels, value)
        yield from (family for family in families.values() if family.samples)


class PrometheusPage:
    """Renders /metrics; the agent's own CPU and memory are on it as `process_*`."""

    def __init__(self, current: Callable[[], Iterable[Sample]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_SampleCollector(current))
        ProcessCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
