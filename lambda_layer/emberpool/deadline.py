"""How much of an invocation's time is left, and the longest that one statement may take of it."""

from __future__ import annotations

import math
import time

from emberpool.errors import DeadlineTooClose

SHORTEST_STATEMENT_MS = 10  # below this a round trip would only be cut in half
# A server that does not even answer a cancel request is given up after this much of the margin.
SILENCE_SHARE, LONGEST_SILENCE_MS = 0.75, 500
WHOLE_SILENCE_MARGIN_MS = LONGEST_SILENCE_MS / SILENCE_SHARE


class Deadline:
    """When Lambda ends the invocation: `ends_at` in seconds of the wall clock, None for a caller that never ends it.

    `margin_ms` is what the handler keeps for its own end, `last_statement_at` when the last statement has to have
    ended, `last_start_at` after which none is sent any more, and `last_answer_at` after which no answer is waited for
    (both infinity without a deadline). Nothing changes them.
    """

    # No frozen dataclass: each invocation makes one, and that would take three times as long.
    __slots__ = ("ends_at", "last_answer_at", "last_start_at", "last_statement_at", "margin_ms")

    def __init__(self, ends_at: float | None, margin_ms: int = 0) -> None:
        self.ends_at = ends_at
        self.margin_ms = margin_ms
        if ends_at is None:
            self.last_statement_at, self.last_start_at, self.last_answer_at = None, math.inf, math.inf
        else:
            self.last_statement_at = last_statement_at = ends_at - margin_ms / 1000
            self.last_start_at = last_statement_at - SHORTEST_STATEMENT_MS / 1000
            # Not min(): each invocation comes by here.
            silence_ms = margin_ms * SILENCE_SHARE if margin_ms < WHOLE_SILENCE_MARGIN_MS else LONGEST_SILENCE_MS
            self.last_answer_at = last_statement_at + silence_ms / 1000

    @classmethod
    def of(cls, context: object, margin_ms: int) -> Deadline:
        """Return the deadline of an invocation; a context without one (a script, a test) has none."""
        remaining_ms = getattr(context, "get_remaining_time_in_millis", None)
        return NO_DEADLINE if remaining_ms is None else cls(time.time() + remaining_ms() / 1000, margin_ms)

    def left_ms(self) -> float | None:
        """Return the milliseconds that statements may still take, None without a deadline."""
        return None if self.last_statement_at is None else (self.last_statement_at - time.time()) * 1000

    def statement_timeout_ms(self, consequence: str = "the statement was not sent") -> int:
        """Return the statement_timeout in milliseconds, 0 (none) without a deadline.

        Raises DeadlineTooClose, which says the `consequence`, when no more than the margin is left.
        """
        if self.last_statement_at is None:
            return 0
        left_ms = (self.last_statement_at - time.time()) * 1000
        if left_ms < SHORTEST_STATEMENT_MS:
            raise DeadlineTooClose(
                f"{max(left_ms + self.margin_ms, 0):.0f} ms are left of this invocation and {self.margin_ms} ms are "
                f"kept for its end: {consequence}. Raise the function's timeout or lower EMBERPOOL_DEADLINE_MARGIN_MS"
            )
        return int(left_ms)


NO_DEADLINE = Deadline(None)
