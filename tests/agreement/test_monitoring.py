"""What dashboard and alarms read is what the proxy and the layer write: names, namespace and dimensions, and how often.

The lines are the real ones, of a task of a fleet that is in touch with its database.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emberpool import emf as layer_emf
from emberpool import metrics as layer_metrics
from emberpool_cdk.pool_alarms import NO_TASK, anchor
from emberpool_proxy.agent.budget_status import BudgetStatus
from emberpool_proxy.data_endpoint.counts import DataCounts
from emberpool_proxy.health import Health
from emberpool_proxy.metrics import CLOUDWATCH_METRICS, Counts
from emberpool_proxy.pgbouncer.config import DATA_COUNTS_FILE
from emberpool_proxy.pgbouncer.installed import InstalledPgbouncer
from emberpool_proxy.pgbouncer.rows import PoolRow, StatsRow
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.emf import PERIOD_SECONDS, EmfLog
from emberpool_proxy.telemetry.readings import Reading
from emberpool_proxy.telemetry.samples import Samples

from .test_infra_and_runtimes import Templates, _proxy_environment

DOCS = Path(__file__).parents[2] / "docs"
PARTS = ("**Means.**", "**Look at.**", "**Do.**")


@pytest.fixture(scope="module")
def templates(templates_with_all: Templates) -> Templates:
    """Those of a pool that writes every metric."""
    return templates_with_all


@pytest.fixture(scope="module")
def settings(templates: Templates) -> ProxySettings:
    """The settings that the synthesized tasks read."""
    return ProxySettings.from_environment(_proxy_environment(templates))


@pytest.fixture(scope="module")
def line(settings: ProxySettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The proxy's second line, a minute after the first: counters have grown."""
    settings = replace(settings, run_folder=str(tmp_path_factory.mktemp("run")))
    health = Health(
        is_answering=True,
        database="up",
        budget=_status(settings),
        pgbouncer=InstalledPgbouncer.of("PgBouncer 1.26.1", program=None),
    )
    out = io.StringIO()
    samples = Samples(settings, health, Counts())
    log = EmfLog(samples.current, settings.metrics_namespace, settings.metrics_service, "task-1", out)
    for transactions in (0, 10):
        row = StatsRow("postgres", total_xact_count=transactions, total_xact_time=transactions, total_wait_time=1)
        _write_data_counts(settings, requests=transactions)
        health.take([Reading(0, (PoolRow("postgres", "role", cl_active=3, sv_active=2),), (row,), ())])
        log.write()
    written: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return written


def _write_data_counts(settings: ProxySettings, requests: int) -> None:
    """Write what the data endpoint writes for the agent."""
    counts = DataCounts()
    for _ in range(requests):
        counts.add(0.01, "DatabaseErrorException")
    settings.engine_path(0).mkdir(exist_ok=True)
    (settings.engine_path(0) / DATA_COUNTS_FILE).write_bytes(counts.encoded())


def _status(settings: ProxySettings) -> BudgetStatus:
    return BudgetStatus(
        state="sharing",
        budget=settings.max_server_connections,
        floor=settings.floor,
        limit=settings.floor,
        is_connected=True,
        slots_promised=settings.shared_slots,
        slots=settings.shared_slots,
        slots_free=settings.shared_slots,
        tasks=2,
        pool_connections=4,
    )


def _directive(line: dict[str, Any]) -> dict[str, Any]:
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    result: dict[str, Any] = directive
    return result


def _written(line: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Return namespace, dimensions and name of each metric that CloudWatch makes of the line."""
    directive = _directive(line)
    (names,) = directive["Dimensions"]
    dimensions = json.dumps({name: line[name] for name in names})
    return {(directive["Namespace"], dimensions, metric["Name"]) for metric in directive["Metrics"]}


def _alarms(templates: Templates) -> list[dict[str, Any]]:
    resources = templates["pool"]["Resources"].values()
    return [each["Properties"] for each in resources if each["Type"] == "AWS::CloudWatch::Alarm"]


def _widgets(templates: Templates) -> list[dict[str, Any]]:
    resources = templates["pool"]["Resources"].values()
    (dashboard,) = [each["Properties"] for each in resources if each["Type"] == "AWS::CloudWatch::Dashboard"]
    # What CloudFormation fills in stands between the parts of a text: any word will do.
    parts = dashboard["DashboardBody"]["Fn::Join"][1]
    text = "".join(part if isinstance(part, str) else "filled-in" for part in parts)
    widgets: list[dict[str, Any]] = json.loads(text)["widgets"]
    return widgets


def _graphed(templates: Templates) -> Iterator[list[Any]]:
    for widget in _widgets(templates):
        yield from widget["properties"].get("metrics", [])


def _read_by_dashboard(templates: Templates) -> set[tuple[str, str, str]]:
    """Return what the graphs read of the proxy."""
    found = set()
    for namespace, name, *more in (each for each in _graphed(templates) if each[0] == ProxySettings.metrics_namespace):
        *dimensions, options = more
        assert options.get("period", PERIOD_SECONDS) == PERIOD_SECONDS, name
        pairs = dict(zip(dimensions[::2], dimensions[1::2], strict=True))
        found.add((namespace, json.dumps(pairs), name))
    return found


def test_every_metric_of_an_alarm_is_written(templates: Templates, line: dict[str, Any]) -> None:
    """Each alarm but the load balancer's reads a metric of the proxy's line, by the same dimension and the minute."""
    read = set()
    for alarm in _alarms(templates):
        if alarm["Namespace"] == "AWS/NetworkELB":
            assert alarm["AlarmDescription"].startswith(NO_TASK)
            continue
        dimensions = json.dumps({each["Name"]: each["Value"] for each in alarm["Dimensions"]})
        read.add((alarm["Namespace"], dimensions, alarm["MetricName"]))
        assert alarm["Period"] == PERIOD_SECONDS
    assert len(read) == 11
    assert read <= _written(line)


def test_every_metric_of_the_dashboard_is_written_and_shown(templates: Templates, line: dict[str, Any]) -> None:
    """The graphs read what the proxy writes, and the proxy writes nothing to be paid for that no graph shows."""
    assert _read_by_dashboard(templates) == _written(line)
    assert {name for _, _, name in _written(line)} == {metric.name for metric in CLOUDWATCH_METRICS}


def test_statistics_are_those_of_the_proxys_table(templates: Templates) -> None:
    """Counts of the tasks are summed, waits are the longest one's: as the proxy's own table says."""
    meant = {metric.name: metric.statistic for metric in CLOUDWATCH_METRICS}
    for alarm in _alarms(templates):
        if alarm["Namespace"] == ProxySettings.metrics_namespace:
            assert alarm["Statistic"] == meant[alarm["MetricName"]]
    for namespace, name, *_, options in (each for each in _graphed(templates) if len(each) > 1):
        if namespace == ProxySettings.metrics_namespace:
            assert options.get("stat", "Average") == meant[name], name


def test_query_of_the_log_names_what_stands_in_the_line(templates: Templates, line: dict[str, Any]) -> None:
    """The table of the tasks reads fields of the same line, of this pool."""
    (query,) = [each["properties"]["query"] for each in _widgets(templates) if each["type"] == "log"]
    fields = set(re.findall(r"(?:latest|ispresent)\((\w+)\)| by (\w+)", query))
    assert {first or second for first, second in fields} <= set(line)
    assert f"Service = '{line['Service']}'" in query


def test_functions_metrics_are_those_of_the_layer(
    templates: Templates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The searches for functions find the layer's real lines: namespace, dimension and names."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")
    layer_emf.write({metric: [1] for metric in layer_metrics.METRICS}, {}, None)
    directive = _directive(json.loads(capsys.readouterr().out))
    searches = [each[0]["expression"] for each in _graphed(templates) if len(each) == 1]
    found = [re.search(r"""\{(\w+),(\w+)\} MetricName="(\w+)"', 'Sum', 60\)""", each) for each in searches]
    assert len(found) == 5
    for each in found:
        assert each is not None
        assert [each[1], [[each[2]]]] == [directive["Namespace"], directive["Dimensions"]]
        assert each[3] in {metric["Name"] for metric in directive["Metrics"]}


def test_tasks_write_metrics_under_the_pools_own_name(settings: ProxySettings) -> None:
    """The tasks are told to write them, by a name that is not every pool's."""
    assert settings.metrics_emf == "on"
    assert settings.metrics_service not in ("", ProxySettings.metrics_service)
    assert settings.metrics_service.isascii()
    assert len(settings.metrics_service) <= 1024  # of a dimension's value


def test_runbook_has_a_section_for_each_alarm(templates: Templates) -> None:
    """Each alarm links to a section of the runbook with the three parts, and no section is without its alarm."""
    _, *sections = re.split(r"(?m)^## ", (DOCS / "runbook.md").read_text())
    titles = {section.splitlines()[0]: section for section in sections}
    described = [alarm["AlarmDescription"] for alarm in _alarms(templates)]
    assert {description.split(". ")[0] for description in described} == set(titles)
    for title, section in titles.items():
        places = [section.index(part) for part in PARTS]
        assert places == sorted(places), title
        assert any(description.endswith(f"docs/runbook.md#{anchor(title)}") for description in described), title


def test_links_within_the_runbook_lead_somewhere() -> None:
    """No link to another section is dead."""
    text = (DOCS / "runbook.md").read_text()
    anchors = {anchor(title) for title in re.findall(r"(?m)^## (.*)$", text)}
    links = re.findall(r"\(#([^)]+)\)", text)
    assert links
    assert set(links) <= anchors
