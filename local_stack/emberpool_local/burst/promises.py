"""What the demo promises, checked against what it measured."""

from __future__ import annotations

from emberpool_local.burst.results import DemoResult


def promises_broken(result: DemoResult) -> list[str]:
    """Return one sentence for each promise that this result does not keep; empty when it keeps all.

    With its defaults the demo promises that the naive way fails, that emberpool does not, and that emberpool's server
    connections stay within its pool.
    """
    broken = []
    naive, emberpool = result.way("naive"), result.way("emberpool")
    if naive.failed == 0:
        broken.append(
            f"the naive way did not fail: {naive.environments} environments were not enough to exhaust "
            f"{naive.max_connections} connections"
        )
    if emberpool.failed:
        causes = ", ".join(f"{count} x {cause}" for cause, count in emberpool.failures.items())
        broken.append(f"{emberpool.failed} of {emberpool.invocations} invocations failed with emberpool: {causes}")
    limit = result.max_server_connections
    if limit is not None and emberpool.most_server_connections > limit:
        broken.append(f"emberpool had {emberpool.most_server_connections} server connections, its limit is {limit}")
    return broken
