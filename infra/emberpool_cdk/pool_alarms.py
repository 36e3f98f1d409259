"""When to wake somebody: each alarm of a pool with its threshold, and what it means. docs/runbook.md says what to do.

Owns thresholds and words. A section of the runbook bears each alarm's title.
"""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import aws_cloudwatch as cloudwatch

from emberpool_cdk.connection_budget import ConnectionBudget

AT_LEAST = cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
AT_MOST = cloudwatch.ComparisonOperator.LESS_THAN_OR_EQUAL_TO_THRESHOLD
BELOW = cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD
NEAR = 0.9  # of the budget
NO_TASK = "No healthy task"
# A wrong password in one function of many is a handful a minute: its own error tells its owner.
CLIENT_LOGIN_FAILURES_A_MINUTE = 10
# A rolling deployment has old and new tasks side by side for some minutes, in which their claims may differ.
DEPLOYMENT_MINUTES = 30


@dataclass(frozen=True)
class PoolAlarm:
    """An alarm on one metric: `minutes` of the last `of_minutes` beyond the threshold."""

    title: str
    meaning: str
    metric: str
    comparison: cloudwatch.ComparisonOperator
    threshold: float
    minutes: int = 1
    of_minutes: int = 1

    @property
    def construct_id(self) -> str:
        """The title as an id."""
        return construct_id(self.title)


def pool_alarms(budget: ConnectionBudget, query_wait_seconds: float) -> tuple[PoolAlarm, ...]:
    """Return the alarms of a pool with that budget, whose clients wait so long at most."""
    return (
        PoolAlarm(
            "Clients wait",
            f"Clients have waited for half of the {query_wait_seconds:g} s that they may, again and again",
            "LongestWait",
            AT_LEAST,
            query_wait_seconds / 2,
            minutes=3,
            of_minutes=5,
        ),
        PoolAlarm(
            "Clients gave up",
            f"Clients got no server connection within {query_wait_seconds:g} s; their functions saw PoolBusy",
            "WaitedInVain",
            AT_LEAST,
            1,
        ),
        _budget_near(budget),
        *(_sharing() if budget.shares_budget else ()),
        *_database(),
        PoolAlarm(
            "Functions cannot log in",
            "The proxy refuses logins of functions by the dozen",
            "ClientLoginFailures",
            AT_LEAST,
            CLIENT_LOGIN_FAILURES_A_MINUTE,
            minutes=3,
            of_minutes=5,
        ),
        PoolAlarm(
            "PgBouncer outdated",
            "The PgBouncer of a task lacks a known security fix",
            "PgbouncerOutdated",
            AT_LEAST,
            1,
            minutes=5,
            of_minutes=5,
        ),
        PoolAlarm("PgBouncer restarted", "A PgBouncer ended and was started again", "PgbouncerRestarts", AT_LEAST, 1),
    )


def construct_id(title: str) -> str:
    """Return a title as an id: its words, each with a capital, without spaces."""
    return "".join(word[0].upper() + word[1:] for word in title.split())


def anchor(title: str) -> str:
    """Return the link's end that leads to the section of that title."""
    return title.lower().replace(" ", "-")


def _budget_near(budget: ConnectionBudget) -> PoolAlarm:
    if not budget.shared_slots:
        most = budget.most_at_min_tasks
        meaning = f"The tasks use {NEAR:.0%} of the {most} connections that {budget.min_tasks} of them have"
        return PoolAlarm("Budget near", meaning, "ServerConnections", AT_LEAST, NEAR * most, minutes=5, of_minutes=5)
    free = round((1 - NEAR) * budget.shared_slots)
    meaning = f"Of the {budget.shared_slots} connections that the tasks share, at most {free} are free"
    return PoolAlarm("Budget near", meaning, "BudgetSlotsFree", AT_MOST, free, minutes=5, of_minutes=5)


def _sharing() -> tuple[PoolAlarm, ...]:
    return (
        PoolAlarm(
            "Database has less room than promised",
            "The database's max_connections, or what others use of it, leaves less than the budget was proven with",
            "BudgetConnectionsShort",
            AT_LEAST,
            1,
            minutes=5,
            of_minutes=5,
        ),
        PoolAlarm(
            "Deployments disagree",
            "Tasks of two deployments share one budget by different figures, for longer than a deployment takes",
            "BudgetClaimConflict",
            AT_LEAST,
            1,
            minutes=DEPLOYMENT_MINUTES,
            of_minutes=DEPLOYMENT_MINUTES,
        ),
        PoolAlarm(
            "Task without control connection",
            "A task cannot reach the budget's locks in the database: it serves with its floor only",
            "BudgetControlConnectionMissing",
            AT_LEAST,
            1,
            minutes=5,
            of_minutes=5,
        ),
    )


def _database() -> tuple[PoolAlarm, ...]:
    return (
        PoolAlarm(
            "Database refuses logins",
            "The database answers, and refuses the pool's logins: password, role, or its own connection limit",
            "ServerLoginFailures",
            AT_LEAST,
            1,
            minutes=2,
            of_minutes=3,
        ),
        PoolAlarm(
            "Database is away",
            "The database does not answer, or takes no writes; clients wait in line",
            "DatabaseUp",
            BELOW,
            1,
            minutes=2,
            of_minutes=3,
        ),
    )
