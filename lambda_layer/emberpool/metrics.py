"""The one table of the layer's metrics. Their names are a contract: alarms and dashboards are built on them."""

from __future__ import annotations

from typing import NamedTuple

NAMESPACE = "Emberpool"
DIMENSION = "function_name"  # the only one: each further value is another metric on the bill


# No dataclass: building one costs every cold start half a millisecond.
class Metric(NamedTuple):
    """A CloudWatch metric: its name, CloudWatch's unit and what it means."""

    name: str
    unit: str
    help: str


COLD_INVOCATIONS = Metric("ColdInvocations", "Count", "first invocations of an environment")
WARM_INVOCATIONS = Metric("WarmInvocations", "Count", "all others, reported with the next line that is due")
CONNECTION_OPEN_TIME = Metric(
    "ConnectionOpenTime", "Milliseconds", "from the start of opening a connection to its login; SampleCount: how many"
)
CONNECTIONS_REPLACED = Metric(
    "ConnectionsReplaced", "Count", "connections that were dead; why stands in `replaced_reasons`"
)
POOL_WAIT_TIME = Metric(
    "PoolWaitTime", "Milliseconds", "how long the transaction's start took: use Maximum, as short waits are not sent"
)
RETRIES = Metric("Retries", "Count", "repeated steps or handlers; why stands in `retried_reasons`")
DEADLINE_CANCELS = Metric("DeadlineCancels", "Count", "statements cancelled because the invocation was about to end")

METRICS = (
    COLD_INVOCATIONS,
    WARM_INVOCATIONS,
    CONNECTION_OPEN_TIME,
    CONNECTIONS_REPLACED,
    POOL_WAIT_TIME,
    RETRIES,
    DEADLINE_CANCELS,
)
