"""The dashboard and the alarms of a pool."""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from emberpool_cdk.pool_alarms import BELOW, NO_TASK, PoolAlarm, anchor, construct_id, pool_alarms
from emberpool_cdk.pool_dashboard import dashboard_rows
from emberpool_cdk.pool_proxy import PoolProxy

RUNBOOK = "docs/runbook.md"  # in emberpool's own repository
NO_TASK_MINUTES = 2


class PoolMonitoring(Construct):
    """A CloudWatch dashboard of the pool, and alarms whose descriptions say what they mean and link to the runbook.

    `runbook_url` is where your people read it (a copy of emberpool's docs/runbook.md). Each action is taken when an
    alarm goes off and when it is over; without any, alarms are seen in the console and on the dashboard only.

    About 3 USD a month for the dashboard (an account's first three are free) and 0.10 for each alarm.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        pool: PoolProxy,
        alarm_actions: Sequence[cloudwatch.IAlarmAction] = (),
        runbook_url: str = RUNBOOK,
    ) -> None:
        super().__init__(scope, construct_id)
        self._runbook_url = runbook_url
        self.alarms = [
            self._no_healthy_task(pool),
            *(self._alarm(pool, alarm) for alarm in pool_alarms(pool.budget, pool.query_wait_seconds)),
        ]
        for alarm in self.alarms:
            alarm.add_alarm_action(*alarm_actions)
            alarm.add_ok_action(*alarm_actions)
        self.dashboard = cloudwatch.Dashboard(
            self, "Dashboard", widgets=dashboard_rows(pool, self.alarms, self._runbook_url)
        )

    @property
    def dashboard_url(self) -> str:
        """Where the dashboard is in the console."""
        stack = Stack.of(self)
        name = self.dashboard.dashboard_name
        # Of the public regions: the console of others has another host.
        return f"https://{stack.region}.console.aws.amazon.com/cloudwatch/home?region={stack.region}#dashboards:name={name}"

    def _alarm(self, pool: PoolProxy, alarm: PoolAlarm) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            self,
            alarm.construct_id,
            metric=pool.metric(alarm.metric),
            comparison_operator=alarm.comparison,
            threshold=alarm.threshold,
            datapoints_to_alarm=alarm.minutes,
            evaluation_periods=alarm.of_minutes,
            # Nothing is written of what is not known, a database that nobody asked for example.
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            alarm_description=self._description(alarm.title, alarm.meaning),
        )

    def _no_healthy_task(self, pool: PoolProxy) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            self,
            construct_id(NO_TASK),
            metric=pool.metric_healthy_tasks(),
            comparison_operator=BELOW,
            threshold=1,
            datapoints_to_alarm=NO_TASK_MINUTES,
            evaluation_periods=NO_TASK_MINUTES,
            treat_missing_data=cloudwatch.TreatMissingData.BREACHING,
            alarm_description=self._description(
                NO_TASK,
                "No task is ready for clients in any zone" if pool.target_group else "No task has written metrics",
            ),
        )

    def _description(self, title: str, meaning: str) -> str:
        return f"{title}. {meaning}. What to do: {self._runbook_url}#{anchor(title)}"
