"""From what is left of an invocation's time to the longest that one statement may take."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from emberpool.errors import DeadlineTooClose

SHORTEST_STATEMENT_MS = 10  # below this a round trip would only be cut in half


@runtime_checkable
class InvocationContext(Protocol):
    """The part of Lambda's context object that says how long the invocation may still take."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds left before Lambda ends the environment."""
        ...


def statement_timeout_ms(context: object, margin_ms: int) -> int:
    """Return the statement_timeout for an invocation in milliseconds, 0 (none) for a context without a deadline.

    Raises DeadlineTooClose when less than the margin is left.
    """
    if not isinstance(context, InvocationContext):
        return 0  # a script or a test calls the handler: nobody will end it
    remaining_ms = context.get_remaining_time_in_millis()
    timeout_ms = remaining_ms - margin_ms
    if timeout_ms < SHORTEST_STATEMENT_MS:
        raise DeadlineTooClose(
            f"{remaining_ms} ms are left of this invocation and {margin_ms} ms are kept for its end; nothing has run. "
            "Raise the function's timeout or lower EMBERPOOL_DEADLINE_MARGIN_MS"
        )
    return timeout_ms
