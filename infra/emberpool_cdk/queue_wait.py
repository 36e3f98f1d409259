"""How long clients may wait in line for a server connection, when the functions run as often as they may at once.

By Little's law, for the worst case that all of them have a transaction for the pool: C clients in line and being
served = throughput x (wait + t), and S server connections serve at most S / t transactions of t seconds in a second.
So the wait is t x (C / S - 1). What functions do between their transactions shortens it. Knows nothing of the CDK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Nobody knows it at synth: a tenth of a second is long for what a function should hold a server connection.
TRANSACTION_SECONDS = 0.1
ROUNDING = 1 + 1e-9
UNBOUNDED = "emberpool:no-reserved-concurrency"
TOO_LONG = "emberpool:long-wait"


class QueueWarning(NamedTuple):
    """A warning of the synth, and the id by which it is acknowledged."""

    id: str
    text: str


@dataclass(frozen=True)
class FunctionLoad:
    """A function that uses the pool; `reserved_concurrency` is None when only the account bounds it."""

    name: str
    reserved_concurrency: int | None
    timeout_seconds: float


def queue_warnings(
    functions: Sequence[FunctionLoad],
    *,
    server_connections: int,
    query_wait_seconds: float,
    transaction_seconds: float = TRANSACTION_SECONDS,
) -> list[QueueWarning]:
    """Return what to warn about: functions without a bound, and a wait above the shortest time that anybody has."""
    warnings = []
    unbounded = [each.name for each in functions if each.reserved_concurrency is None]
    if unbounded:
        text = (
            f"no reserved concurrency: {', '.join(unbounded)}; nothing but the account's limit says how many clients "
            "may wait for the pool: set reserved_concurrent_executions"
        )
        warnings.append(QueueWarning(UNBOUNDED, text))
    clients = sum(each.reserved_concurrency or 0 for each in functions)
    wait = wait_seconds(clients, server_connections, transaction_seconds)
    limits = [(query_wait_seconds, "the pool's query_wait_seconds")]
    limits += [
        (each.timeout_seconds - transaction_seconds, f"what {each.name} has until its timeout") for each in functions
    ]
    limit, whose = min(limits)
    if wait > limit * ROUNDING:
        text = _too_long(clients, server_connections, transaction_seconds, limit, whose)
        warnings.append(QueueWarning(TOO_LONG, text))
    return warnings


def wait_seconds(clients: int, server_connections: int, transaction_seconds: float) -> float:
    """Return the wait in line by Little's law; 0 when there is a server connection for each client."""
    return max(clients / server_connections - 1, 0.0) * transaction_seconds


def _too_long(clients: int, connections: int, transaction: float, limit: float, whose: str) -> str:
    wait = wait_seconds(clients, connections, transaction)
    message = (
        f"clients may wait too long: the functions may run {clients} times at once and share {connections} server "
        f"connections; if all have a transaction of {transaction:g} s at once, by Little's law they wait "
        f"{transaction:g} s x ({clients} / {connections} - 1) = {wait:.3g} s, but {whose} is {limit:.3g} s"
    )
    if limit <= 0:
        return f"{message}: raise it"
    fitting = math.floor(connections * (1 + limit / transaction))
    needed = math.ceil(clients / (1 + limit / transaction))
    shorter = _rounded_down(limit / (clients / connections - 1))
    return (
        f"{message}: reserve at most {fitting} executions in all, have {needed} server connections, or keep "
        f"transactions below {shorter:g} s"
    )


def _rounded_down(seconds: float) -> float:
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)  # two digits
    return math.floor(seconds / step) * step
