"""The proof that the fleet cannot exceed the database's connection limit: it holds, or nothing is synthesized."""

from __future__ import annotations

from dataclasses import dataclass

from emberpool_cdk.budget_terms import FLOOR_CONNECTIONS, RESERVED_CONNECTIONS, BudgetTerms, least_floor
from emberpool_cdk.budget_text import exceeded, metadata, table

__all__ = ["FLOOR_CONNECTIONS", "RESERVED_CONNECTIONS", "BudgetExceeded", "ConnectionBudget", "least_floor"]


class BudgetExceeded(ValueError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The fleet would need more connections than the database allows: the message shows the sum and the ways out."""


@dataclass(frozen=True)
class ConnectionBudget(BudgetTerms):
    """Divides a database's connections among the most tasks that can be alive at once: see BudgetTerms for the terms.

    Guarantees `most_tasks_alive * (floor + AGENT_CONNECTIONS) + shared_slots <= max_connections -
    reserved_connections`, with a floor that is enough for each pool of a task. One generation of tasks that still stop
    is counted beside those of a deployment; a third deployment within the two minutes that a stop may take is not.

    Raises BudgetExceeded when the floors do not fit, and ValueError for a count out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.holds:
            raise BudgetExceeded(exceeded(self))

    def as_metadata(self) -> dict[str, int]:
        """Return every term of the sum, for the template's metadata."""
        return metadata(self)

    def as_table(self) -> str:
        """Return the sum as a small table of text, for the terminal."""
        return table(self)
