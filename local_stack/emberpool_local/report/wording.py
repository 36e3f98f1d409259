"""The words and columns that the terminal and the page share: one place writes a figure.

Owns headlines, the table's columns and how a figure is written. Draws nothing.
"""

from __future__ import annotations

from collections import Counter

from emberpool_local.burst.results import PERCENTILE_METHOD, DemoResult, WayResult
from emberpool_local.burst.sampler import SAMPLES_PER_SECOND

COLUMNS = (
    "invocations",
    "succeeded",
    "failed",
    "p50 ms",
    "p99 ms",
    "succeeded per s",
    "most server connections",
    "connections opened",
)


def cells(way: WayResult) -> tuple[str, ...]:
    """Write the figures of one way, in the order of COLUMNS."""
    return (
        count_text(way.invocations),
        count_text(way.succeeded),
        count_text(way.failed),
        milliseconds_text(way.p50_ms),
        milliseconds_text(way.p99_ms),
        count_text(round(way.succeeded_per_second)),
        count_text(way.most_server_connections),
        count_text(way.connections_opened),
    )


def causes(result: DemoResult) -> list[str]:
    """List the errors of all ways, the most frequent first."""
    total: Counter[str] = Counter()
    for way in result.ways:
        total.update(way.failures)
    return [cause for cause, _ in total.most_common()]


def count_text(count: int) -> str:
    """Write a count with its thousands apart."""
    return f"{count:,}"


def milliseconds_text(value: float | None) -> str:
    """Write a latency with about three digits; a dash when nothing succeeded."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 (three digits)


def failed_share_text(way: WayResult) -> str:
    """Write the failed share so that 0 % means none and 100 % means all."""
    if way.failed in {0, way.invocations}:
        return "0 %" if way.failed == 0 else "100 %"
    share = 100 * way.failed / way.invocations
    return "under 1 %" if share < 1 else "over 99 %" if share > 99 else f"{share:.0f} %"  # noqa: PLR2004 (per cent)


def headline(result: DemoResult) -> str:
    """Say the result in one sentence, with its real figures."""
    ways = {way.name: way for way in result.ways}
    if {"naive", "emberpool"} <= ways.keys():
        naive, emberpool = ways["naive"], ways["emberpool"]
        return (
            f"{_of_all(naive.failed, naive.invocations)} invocations failed when each opened its own connection. "
            f"With emberpool, {_none_or(emberpool.failed)} did."
        )
    way = result.ways[-1]
    return (
        f"{count_text(way.invocations)} invocations of {way.handler} in {count_text(way.environments)} environments: "
        f"{_none_or(way.failed)} failed, over {way.most_server_connections} server connections at most."
    )


def subline(result: DemoResult) -> str:
    """Say what was done, in one or two sentences."""
    way = result.ways[-1]
    sentence = (
        f"{count_text(way.environments)} execution environments of a Lambda function at the same moment, against a "
        f"PostgreSQL that allows {result.max_connections} connections."
    )
    if len(result.ways) > 1:
        return (
            f"{sentence} The same {count_text(way.invocations)} invocations, over {len(result.ways)} ways to connect; "
            f"emberpool needed {way.most_server_connections} server connections at most."
        )
    return sentence


def method(result: DemoResult) -> list[str]:
    """Say how it was measured, one sentence or two for each thing that a sceptic would ask."""
    way = result.ways[-1]
    start = (
        f"All {way.environments} environments were started first, then all were given an invocation at once, and each "
        f"the next one as soon as it had answered, until {count_text(way.invocations)} were done."
    )
    parts = (
        "The environments are processes of AWS's own runtime client (awslambdaric), frozen while they are idle. "
        f"They, PostgreSQL (without fsync) and the proxy share the {result.machine.cores} cores of one machine, so "
        "the latencies are this machine's, not those of AWS."
    )
    latency = (
        "Latency is from handing an invocation to its environment until its answer. The start of the environment is "
        "not in it. Only succeeded invocations count, as a refused connection fails fast. "
        f"Percentiles by {PERCENTILE_METHOD}."
    )
    connections = (
        f"Server connections: pg_stat_activity, {SAMPLES_PER_SECOND} times a second, without the observer's own, which "
        "takes one of the limit. Connections opened: the logins in PostgreSQL's log, from the start of the first "
        "environment to the last answer."
    )
    sentences = [start, parts, latency, connections]
    return sentences if len(result.ways) == 1 else [*sentences, *_fairness()]


def _fairness() -> list[str]:
    """Say what makes the demo's three ways comparable, and what does not."""
    work = (
        "Each invocation reserves an order in one transaction, waits half a second for a payment provider (a sleep), "
        "and notes the payment in another. A connection of one's own stays open meanwhile, the proxy's serves others."
    )
    ways = (
        "The ways ran one after the other against the same server, with the same business code, events and tables. "
        "Straight to the database means SCRAM without TLS; through the proxy means TLS and SCRAM, as on AWS. So the "
        "cost of encryption is in emberpool's figures only, most of it in the first invocation of each environment, "
        "when all of them log in at once. The layer's connect timeout was raised for that, as they share these cores."
    )
    failures = (
        "An environment whose invocation fails takes the next one at once, so how many fail depends on the length of "
        "the burst and on the machine."
    )
    return [work, ways, failures]


def _of_all(failed: int, invocations: int) -> str:
    if failed == 0:
        return f"None of {count_text(invocations)}"
    return f"{count_text(failed)} of {count_text(invocations)}"


def _none_or(count: int) -> str:
    return "none" if count == 0 else count_text(count)
