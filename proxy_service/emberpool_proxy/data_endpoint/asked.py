"""What a call sends for its statement: steps in which it may be tried with its parameters typed or untyped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from emberpool_proxy.data_endpoint.fallbacks import Key, is_untyped
from emberpool_proxy.data_endpoint.sql_text import CompiledSql
from emberpool_proxy.data_endpoint.steps import Step, Way, statement, types_of
from emberpool_proxy.data_endpoint.values import Value


class Asked(Protocol):
    """One statement, or a batch of one."""

    compiled: CompiledSql
    is_untyped: bool

    def key(self, entry: str) -> Key:
        """Return what is remembered of it by."""
        ...

    def steps(self, way: Way, with_fallbacks: bool) -> Sequence[Step]:
        """Return the steps."""
        ...


@dataclass(slots=True)
class One:
    """A statement with its values."""

    compiled: CompiledSql
    values: Sequence[Value]
    is_untyped: bool = False

    def __post_init__(self) -> None:
        self.is_untyped = is_untyped(self.values)

    def key(self, entry: str) -> Key:
        """Return what is remembered of it by."""
        return (entry, self.compiled.text, types_of(self.values))

    def steps(self, way: Way, with_fallbacks: bool) -> Sequence[Step]:
        """Return its step."""
        return (statement(self.compiled.text, self.values, way, with_fallbacks),)


@dataclass(slots=True)
class Batch:
    """A statement with several sets of values: parsed once for all that have the same types."""

    compiled: CompiledSql
    sets: Sequence[Sequence[Value]]
    is_untyped: bool = False

    def __post_init__(self) -> None:
        self.is_untyped = any(is_untyped(values) for values in self.sets)

    def key(self, entry: str) -> Key:
        """Return what is remembered of it by."""
        return (entry, self.compiled.text, types_of(self.sets[0]))

    def steps(self, way: Way, with_fallbacks: bool) -> Sequence[Step]:
        """Return the steps: those whose way is BOUND are the sets'."""
        del way
        steps: list[Step] = []
        parsed: tuple[int, ...] | None = None
        for values in self.sets:
            step = statement(self.compiled.text, values, Way.BOUND, with_fallbacks)
            if step.types != parsed:
                parsed = step.types
                steps.append(Step(step.sql, types=parsed, way=Way.PREPARE))
            steps.append(step)
        return steps
