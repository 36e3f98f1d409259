"""CloudWatch's alarms and dashboards."""

from __future__ import annotations

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

ALARM = "AWS::CloudWatch::Alarm"
DASHBOARD = "AWS::CloudWatch::Dashboard"
API = "cloudwatch"
OF_ALARM = (
    "AlarmDescription",
    "ComparisonOperator",
    "DatapointsToAlarm",
    "EvaluationPeriods",
    "Metrics",
    "Threshold",
    "TreatMissingData",
)


def register_types() -> None:
    """Teach moto the types of CloudWatch; its own dashboards have no physical id."""
    register(ALARM, _create_alarm, _delete_alarm, name_property="AlarmName", update=_put_alarm, in_place=OF_ALARM)
    register(
        DASHBOARD,
        _create_dashboard,
        _delete_dashboard,
        name_property="DashboardName",
        update=_put_dashboard,
        in_place=("DashboardBody",),
    )


def _create_alarm(region: str, properties: Properties, name: str) -> Made:
    given = {"AlarmName": name, **properties}
    call(region, ALARM, API, "put_metric_alarm", given)
    (made,) = client(API, region).describe_alarms(AlarmNames=[given["AlarmName"]])["MetricAlarms"]
    return Made(made["AlarmName"], {"Arn": made["AlarmArn"]})


def _put_alarm(region: str, name: str, properties: Properties) -> None:
    call(region, ALARM, API, "put_metric_alarm", {**properties, "AlarmName": name})


def _delete_alarm(region: str, name: str, _: Properties) -> None:
    client(API, region).delete_alarms(AlarmNames=[name])


def _create_dashboard(region: str, properties: Properties, name: str) -> Made:
    given = {"DashboardName": name, **properties}
    call(region, DASHBOARD, API, "put_dashboard", given)
    return Made(given["DashboardName"])


def _put_dashboard(region: str, name: str, properties: Properties) -> None:
    call(region, DASHBOARD, API, "put_dashboard", {**properties, "DashboardName": name})


def _delete_dashboard(region: str, name: str, _: Properties) -> None:
    client(API, region).delete_dashboards(DashboardNames=[name])
