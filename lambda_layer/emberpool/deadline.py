"""How much of an invocation's time is left, and the longest that one statement may take of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from emberpool.errors import DeadlineTooClose

SHORTEST_STATEMENT_MS = 10  # below this a round trip would only be cut in half


@dataclass(frozen=True)
class Deadline:
    """When Lambda ends the invocation: `ends_at` in seconds of the wall clock, None for a caller that never ends it.

    `margin_ms` is what the handler keeps for its own end.
    """

    ends_at: float | None
    margin_ms: int = 0

    @classmethod
    def of(cls, context: object, margin_ms: int) -> Deadline:
        """Return the deadline of an invocation; a context without one (a script, a test) has none."""
        remaining_ms = getattr(context, "get_remaining_time_in_millis", None)
        return NO_DEADLINE if remaining_ms is None else cls(time.time() + remaining_ms() / 1000, margin_ms)

    @property
    def last_statement_at(self) -> float | None:
        """When the last statement has to have ended, in seconds of the wall clock."""
        return None if self.ends_at is None else self.ends_at - self.margin_ms / 1000

    def left_ms(self) -> float | None:
        """Return the milliseconds that statements may still take, None without a deadline."""
        return None if self.ends_at is None else (self.ends_at - time.time()) * 1000 - self.margin_ms

    def statement_timeout_ms(self, consequence: str = "the statement was not sent") -> int:
        """Return the statement_timeout in milliseconds, 0 (none) without a deadline.

        Raises DeadlineTooClose, which says the `consequence`, when no more than the margin is left.
        """
        left_ms = self.left_ms()
        if left_ms is None:
            return 0
        if left_ms < SHORTEST_STATEMENT_MS:
            raise DeadlineTooClose(
                f"{max(left_ms + self.margin_ms, 0):.0f} ms are left of this invocation and {self.margin_ms} ms are "
                f"kept for its end: {consequence}. Raise the function's timeout or lower EMBERPOOL_DEADLINE_MARGIN_MS"
            )
        return int(left_ms)


NO_DEADLINE = Deadline(None)
