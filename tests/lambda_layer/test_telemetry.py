"""What the layer reports, and that a plain warm invocation reports nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emberpool import settings as names
from emberpool.emf import LARGEST_ARRAY
from emberpool.metrics import METRICS
from emberpool.settings import LayerSettings, SettingsInvalid
from emberpool.telemetry import LONGEST_COUNTING_SECONDS, REPORTED_WAIT_MS, Recorder
from emberpool_local.lambda_runtime import Fleet

UNITS = {metric.name: metric.unit for metric in METRICS}


@dataclass
class Invocation:
    """The part of Lambda's context object that telemetry reads."""

    function_name: str = "orders"
    aws_request_id: str = "8f5c-1"


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def in_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function without Powertools, whatever other tests of this process imported."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")
    monkeypatch.delenv("AWS_LAMBDA_LOG_FORMAT", raising=False)
    monkeypatch.delenv(names.METRICS, raising=False)
    for module in [name for name in sys.modules if name.startswith("aws_lambda_powertools")]:
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder(clock)


def emf_lines(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines()]
    return [assert_is_emf(line) for line in lines if "_aws" in line]


def assert_is_emf(line: dict[str, Any]) -> dict[str, Any]:
    """What CloudWatch demands of a line, and what we promise about ours."""
    assert isinstance(line["_aws"]["Timestamp"], int)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    if directive["Namespace"] != "Emberpool":
        return line
    assert directive["Dimensions"] == [["function_name"]]
    assert isinstance(line["function_name"], str)
    assert directive["Metrics"]
    for metric in directive["Metrics"]:
        assert metric == {"Name": metric["Name"], "Unit": UNITS[metric["Name"]]}
        values = line[metric["Name"]]
        assert 1 <= len(values) <= LARGEST_ARRAY
        assert all(isinstance(value, int | float) for value in values)
    declared = {metric["Name"] for metric in directive["Metrics"]}
    assert set(line) - declared <= {
        "_aws",
        "function_name",
        "function_request_id",
        "replaced_reasons",
        "retried_reasons",
    }
    return line


def function_output(code: str, **environment: str) -> str:
    """What a function's process prints, in a fresh interpreter with the real Powertools at hand."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "POWERTOOLS_TRACE_DISABLED": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_warm_invocations_print_nothing(recorder: Recorder, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, to no stream, while nothing but warm invocations happens."""
    for _ in range(1000):
        recorder.invocation_ended(False, Invocation(), 0.4)
    assert capfd.readouterr() == ("", "")


def test_first_invocation_reports_the_connection_that_init_opened(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection opened before the first invocation stands in the first invocation's line, once."""
    recorder.opened(41.5, True)
    recorder.invocation_ended(True, Invocation(), 1.25)
    recorder.invocation_ended(False, Invocation(), 0.4)
    output = capsys.readouterr().out
    (line,) = emf_lines(output)
    assert output.endswith("\n")
    assert output.count("\n") == 1
    assert line["ColdInvocations"] == [1]
    assert line["ConnectionOpenTime"] == [41.5]
    assert line["PoolWaitTime"] == [1.25]
    assert line["function_name"] == "orders"
    assert line["function_request_id"] == "8f5c-1"
    assert "WarmInvocations" not in line


def test_line_carries_what_happened_and_the_warm_invocations_before_it(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts are summed, reasons listed once each, and warm invocations come along."""
    recorder.invocation_ended(False, Invocation(), 0.4)
    for _ in range(2):
        recorder.replaced("closed by server")
    recorder.replaced("no answer")
    recorder.retried("lost at BEGIN")
    recorder.deadline_cancelled()
    recorder.invocation_ended(False, Invocation(), 0.4)
    (line,) = emf_lines(capsys.readouterr().out)
    assert line["ConnectionsReplaced"] == [3]
    assert line["replaced_reasons"] == "closed by server, no answer"
    assert line["Retries"] == [1]
    assert line["retried_reasons"] == "lost at BEGIN"
    assert line["DeadlineCancels"] == [1]
    assert line["WarmInvocations"] == [2]


def test_only_a_long_wait_is_worth_a_line(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    """A wait below the threshold is forgotten with its invocation; one at the threshold is reported with it."""
    recorder.invocation_ended(False, Invocation(), REPORTED_WAIT_MS - 0.1)
    assert capsys.readouterr().out == ""
    recorder.invocation_ended(False, Invocation(), REPORTED_WAIT_MS)
    recorder.invocation_ended(False, Invocation(), 0.4)
    (line,) = emf_lines(capsys.readouterr().out)
    assert line["PoolWaitTime"] == [REPORTED_WAIT_MS]


def test_long_counting_ends_in_a_line(recorder: Recorder, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Warm invocations are reported after five minutes of the wall clock, also when the environment was frozen."""
    recorder.invocation_ended(False, Invocation(), 0.4)
    clock.now += LONGEST_COUNTING_SECONDS
    recorder.invocation_ended(False, Invocation(), 0.4)
    recorder.invocation_ended(False, Invocation(), 0.4)
    (line,) = emf_lines(capsys.readouterr().out)
    assert line["WarmInvocations"] == [2]


def test_shutdown_reports_the_rest_once(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    """The last counts of an environment go out at its end, under the function's name."""
    recorder.flush()
    recorder.invocation_ended(False, Invocation(), 0.4)
    recorder.flush()
    recorder.flush()
    (line,) = emf_lines(capsys.readouterr().out)
    assert (line["WarmInvocations"], line["function_name"]) == ([1], "orders")
    assert "function_request_id" not in line


def test_line_stays_within_what_cloudwatch_takes(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    """Of more than 100 connections that were opened for one line the longest times are reported."""
    for number in range(250):
        recorder.opened(float(number), False)
    recorder.invocation_ended(False, Invocation(), 0.4)
    (line,) = emf_lines(capsys.readouterr().out)
    assert line["ConnectionOpenTime"] == [float(number) for number in range(150, 250)]


@pytest.mark.parametrize(("variable", "value"), [(names.METRICS, "off"), ("AWS_LAMBDA_FUNCTION_NAME", None)])
def test_no_metrics_when_off_or_outside_of_lambda(
    variable: str,
    value: str | None,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """EMBERPOOL_METRICS=off ends them, and a script's terminal does not show them."""
    monkeypatch.delenv(variable, raising=False)
    if value:
        monkeypatch.setenv(variable, value)
    recorder.opened(5, True)
    recorder.invocation_ended(True, Invocation(), 0.4)
    assert capsys.readouterr().out == ""


def test_unknown_switch_is_refused() -> None:
    """A misspelt EMBERPOOL_METRICS fails where the layer is loaded, not silently at the first line."""
    environment = {names.HOST: "h", names.USER: "u", names.PASSWORD: "p", names.SSLMODE: "disable"}
    assert LayerSettings.from_environment(environment).metrics == "on"
    with pytest.raises(SettingsInvalid, match="EMBERPOOL_METRICS must be one of on, off, got 'none'"):
        LayerSettings.from_environment({**environment, names.METRICS: "none"})


def test_closed_output_does_not_fail_the_invocation(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invocation that committed does not fail because its line cannot be written."""
    with open(os.devnull, "w") as stream:  # noqa: PTH123 (any closed stream)
        monkeypatch.setattr(sys, "stdout", stream)
    recorder.opened(5, True)
    recorder.invocation_ended(True, Invocation(), 0.4)


def test_log_lines_are_json_and_level_says_whether_to_act(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """Without Powertools each line of the logger `emberpool` is one JSON object."""
    caplog.set_level(logging.DEBUG, "emberpool")
    recorder.opened(41.46, True)
    recorder.replaced("closed by server")
    recorder.retried("lost at BEGIN")
    recorder.deadline_cancelled()
    lines = [(record.levelname, json.loads(record.getMessage())) for record in caplog.records]
    assert [(level, line["emberpool"]) for level, line in lines] == [
        ("DEBUG", "connection_opened"),
        ("INFO", "connection_replaced"),
        ("INFO", "retried"),
        ("WARNING", "deadline_cancelled"),
    ]
    assert lines[0][1] == {
        "message": "connection opened",
        "emberpool": "connection_opened",
        "duration_ms": 41.5,
        "cold": True,
    }
    assert lines[1][1]["reason"] == "closed by server"


def test_warning_is_logged_once_per_environment(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """The second warning of a kind is dropped, one of another kind is not."""
    for kind in ("session_set", "session_set", "listen"):
        recorder.warned(kind, "does not survive transaction pooling")
    assert [json.loads(record.getMessage())["emberpool"] for record in caplog.records] == ["session_set", "listen"]


def test_lambdas_json_log_format_gets_fields(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Lambda's own JSON log format the details are fields of the line, not JSON inside of JSON."""
    from awslambdaric.lambda_runtime_log_utils import JsonFormatter

    monkeypatch.setenv("AWS_LAMBDA_LOG_FORMAT", "JSON")
    caplog.set_level(logging.INFO, "emberpool")
    recorder.replaced("no answer")
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "connection replaced: no answer"
    assert (line["emberpool"], line["reason"]) == ("connection_replaced", "no answer")


def test_telemetry_does_not_import_powertools() -> None:
    """A function without Powertools does not pay for it, not even when there is something to report."""
    output = function_output(
        """
        import sys
        from emberpool import telemetry
        telemetry.opened(5, True)
        telemetry.replaced("forked")
        telemetry.warned("listen", "text")
        telemetry.invocation_ended(True, None, 0.4)
        loaded = [name for name in sys.modules if "powertools" in name or name.split(".")[0] in ("psycopg", "boto3")]
        assert not loaded, loaded
        """
    )
    assert len(emf_lines(output)) == 1


def test_forked_child_does_not_report_what_its_parent_collected() -> None:
    """Under one process per request (Lambda Managed Instances) nothing is counted twice."""
    output = function_output(
        """
        import os
        from emberpool import telemetry
        telemetry.opened(5, True)
        if os.fork() == 0:
            telemetry.invocation_ended(False, None, 0.4)
            telemetry.replaced("forked")
            telemetry.invocation_ended(False, None, 0.4)
            os._exit(0)
        os.wait()
        telemetry.invocation_ended(True, None, 0.4)
        """
    )
    child, parent = emf_lines(output)
    assert ("ConnectionOpenTime" in child, child["ConnectionsReplaced"]) == (False, [1])
    assert ("ConnectionsReplaced" in parent, parent["ConnectionOpenTime"]) == (False, [5])


USERS_FUNCTION = """
    from types import SimpleNamespace
    from aws_lambda_powertools import Logger, Metrics
    from emberpool import telemetry

    logger, metrics = Logger(service="payment"), Metrics(namespace="Shop", service="payment")
    metrics.set_default_dimensions(environment="test")

    @metrics.log_metrics
    @logger.inject_lambda_context(correlation_id_path="id")
    def handler(event, context):
        metrics.add_metric(name="Orders", unit="Count", value=1)
        telemetry.opened(41.5, True)
        telemetry.opened(12.5, False)
        telemetry.replaced("closed by server")
        telemetry.invocation_ended(True, context, 1.25)
        metrics.add_metric(name="Paid", unit="Count", value=2)

    handler({"id": "corr-7"}, SimpleNamespace(
        function_name="orders", memory_limit_in_mb=128, aws_request_id="8f5c-1",
        invoked_function_arn="arn:aws:lambda:eu-west-1:123456789012:function:orders",
    ))
"""


def test_powertools_metrics_of_the_user_are_not_disturbed() -> None:
    """The user's line has the user's namespace, dimensions and metrics; ours is a line of its own."""
    ours, users = emf_lines(function_output(USERS_FUNCTION, POWERTOOLS_SERVICE_NAME="payment"))
    assert ours["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Emberpool"
    assert ours["ConnectionOpenTime"] == [41.5, 12.5]
    assert (ours["replaced_reasons"], ours["function_request_id"]) == ("closed by server", "8f5c-1")
    (directive,) = users["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Shop"
    assert directive["Dimensions"] == [["environment", "service"]]
    assert [metric["Name"] for metric in directive["Metrics"]] == ["Orders", "Paid"]
    assert not set(users) & {"function_name", "function_request_id", *UNITS}


def test_powertools_logger_gives_our_lines_the_correlation_id() -> None:
    """Our log line comes from the user's service, once, with its keys."""
    output = function_output(USERS_FUNCTION)
    (line,) = [line for line in map(json.loads, output.splitlines()) if "_aws" not in line]
    assert (line["level"], line["service"], line["correlation_id"]) == ("INFO", "payment", "corr-7")
    assert line["message"] == "connection replaced: closed by server"
    assert (line["emberpool"], line["reason"]) == ("connection_replaced", "closed by server")


def test_powertools_own_switch_holds() -> None:
    """POWERTOOLS_METRICS_DISABLED ends our metrics, too; that proves that Powertools wrote them."""
    output = function_output(USERS_FUNCTION, POWERTOOLS_METRICS_DISABLED="true")
    assert emf_lines(output) == []


async def test_lambdas_log_shows_a_line_for_the_cold_invocation_only(tmp_path: Path) -> None:
    """Under the real runtime client the line reaches the invocation's log whole, and a warm one logs nothing."""
    source = """
        from emberpool import telemetry
        is_cold = True

        def handler(event, context):
            global is_cold
            if is_cold:
                telemetry.opened(41.5, True)
            telemetry.invocation_ended(is_cold, context, 0.4)
            is_cold = False
            return context.aws_request_id
    """
    (tmp_path / "app.py").write_text(textwrap.dedent(source))
    async with Fleet(
        code_folder=tmp_path, handler="app:handler", start_method="process", function_name="orders"
    ) as fleet:
        cold, warm = await fleet.invoke(b"{}"), await fleet.invoke(b"{}")
    (line,) = emf_lines(cold.log)
    assert (line["function_name"], line["function_request_id"]) == ("orders", json.loads(cold.payload))
    assert line["ColdInvocations"] == [1]
    assert (warm.status, warm.log) == ("succeeded", "")
