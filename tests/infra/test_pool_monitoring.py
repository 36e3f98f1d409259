"""PoolMonitoring: its alarms and its dashboard follow the pool's own terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from tests.infra.conftest import PoolInAStack, Synthesized

from emberpool_app.deployment import POOL
from emberpool_cdk import ConnectionBudget, PoolMonitoring
from emberpool_cdk.pool_alarms import anchor, construct_id, pool_alarms


def _alarms(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the alarms by the title that their description begins with."""
    found = [each["Properties"] for each in template["Resources"].values() if each["Type"] == "AWS::CloudWatch::Alarm"]
    return {each["AlarmDescription"].split(". ")[0]: each for each in found}


def test_default_app_has_a_dashboard_and_alarms(synthesized: Synthesized) -> None:
    """Our own app deploys them; without a task the alarm goes off by the very lack of a number, others do not."""
    synthesized.only(POOL, "AWS::CloudWatch::Dashboard")
    alarms = _alarms(synthesized.templates[POOL])
    assert {title for title, each in alarms.items() if each["TreatMissingData"] == "breaching"} == {"No healthy task"}
    for each in alarms.values():
        assert each["TreatMissingData"] in ("breaching", "notBreaching")
        assert each.get("DatapointsToAlarm", each["EvaluationPeriods"]) <= each["EvaluationPeriods"]


def test_each_alarm_says_what_it_means_and_where_to_read_on(tmp_path: Path) -> None:
    """The description has a sentence and a link to the section, by the address that is given."""
    users = PoolInAStack(tmp_path)
    PoolMonitoring(users.stack, "Monitoring", pool=users.pool, runbook_url="https://wiki.example.com/pool")
    alarms = _alarms(users.template())
    assert len(alarms) == 12
    for title, each in alarms.items():
        assert each["AlarmDescription"].endswith(f"What to do: https://wiki.example.com/pool#{anchor(title)}"), title
        assert len(each["AlarmDescription"]) <= 1024  # CloudWatch's longest


def test_actions_are_taken_at_both_ends(tmp_path: Path) -> None:
    """Whoever is told that an alarm went off is told that it is over."""
    users = PoolInAStack(tmp_path)
    topic = sns.Topic(users.stack, "Topic")
    PoolMonitoring(users.stack, "Monitoring", pool=users.pool, alarm_actions=[actions.SnsAction(topic)])
    for title, each in _alarms(users.template()).items():
        assert "Topic" in json.dumps(each["AlarmActions"]), title
        assert each["OKActions"] == each["AlarmActions"]


def test_thresholds_follow_the_pools_terms(tmp_path: Path) -> None:
    """Clients wait for half of what they may; near the budget means a tenth of the slots, or of what the floors are."""
    users = PoolInAStack(tmp_path, query_wait_seconds=20)
    PoolMonitoring(users.stack, "Monitoring", pool=users.pool)
    alarms = _alarms(users.template())
    assert alarms["Clients wait"]["Threshold"] == 10
    near = alarms["Budget near"]
    slots = users.pool.budget.shared_slots
    assert (near["MetricName"], near["Threshold"]) == ("BudgetSlotsFree", round(slots / 10))
    assert near["ComparisonOperator"] == "LessThanOrEqualToThreshold"


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        (ConnectionBudget(12 * 4 + 15), 2 * 2),  # floors alone
        (ConnectionBudget(115, 1, 1, surge=1, stopping_generations=0), 98),  # a task that is never beside another
    ],
)
def test_pool_that_shares_nothing_has_alarms_on_what_it_writes(budget: ConnectionBudget, most: int) -> None:
    """Without slots the alarm is on the server connections; a task that is alone writes nothing of a budget."""
    alarms = {each.title: each for each in pool_alarms(budget, 10)}
    near = alarms["Budget near"]
    assert (near.metric, near.threshold) == ("ServerConnections", pytest.approx(0.9 * most))
    assert ("Deployments disagree" in alarms) == budget.shares_budget


def test_dashboard_shows_the_budget_and_all_alarms(tmp_path: Path) -> None:
    """The server connections have the budget as a line, the waits the longest wait, and no alarm is missing."""
    users = PoolInAStack(tmp_path, query_wait_seconds=20)
    monitoring = PoolMonitoring(users.stack, "Monitoring", pool=users.pool)
    (dashboard,) = [
        each["Properties"]
        for each in users.template()["Resources"].values()
        if each["Type"] == "AWS::CloudWatch::Dashboard"
    ]
    text = "".join(part for part in dashboard["DashboardBody"]["Fn::Join"][1] if isinstance(part, str))
    assert f'"value":{users.pool.budget.budget},"label":"budget of the fleet"' in text
    assert '"value":20,"label":"clients are told PoolBusy"' in text
    for alarm in monitoring.alarms:
        assert f"Monitoring{alarm.node.id}" in json.dumps(dashboard)


def test_pool_without_metrics_cannot_be_monitored(tmp_path: Path) -> None:
    """metrics=False keeps the tasks from writing them: an alarm on nothing would never go off."""
    users = PoolInAStack(tmp_path, metrics=False)
    with pytest.raises(ValueError, match="metrics=False"):
        PoolMonitoring(users.stack, "Monitoring", pool=users.pool)


def test_metric_that_nobody_writes_is_refused(tmp_path: Path) -> None:
    """A misspelt name fails the synth with the one that was meant."""
    users = PoolInAStack(tmp_path)
    with pytest.raises(ValueError, match="no metric ClientsWating; did you mean ClientsWaiting"):
        users.pool.metric("ClientsWating")


def test_metric_methods_name_the_pools_metrics(tmp_path: Path) -> None:
    """Each metric_ method gives a metric of this pool, by the minute, that an alarm of one's own can be made of."""
    users = PoolInAStack(tmp_path, metrics_service="orders")
    methods = [name for name in dir(users.pool) if name.startswith("metric_") and name != "metric_healthy_tasks"]
    assert len(methods) == 12
    for name in methods:
        metric = getattr(users.pool, name)()
        assert metric.dimensions == {"Service": "orders"}
        assert metric.period.to_seconds() == 60
    alarm = users.pool.metric_wait_time().create_alarm(
        users.stack,
        "Mine",
        threshold=50,
        evaluation_periods=1,
        comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
    )
    assert alarm.node.path == "Users/Mine"


def test_titles_become_ids_and_links() -> None:
    """Ids are words in capitals, links what Markdown makes of a heading."""
    assert construct_id("Database has less room than promised") == "DatabaseHasLessRoomThanPromised"
    assert anchor("Database has less room than promised") == "database-has-less-room-than-promised"
