"""PostgreSQL's arrays as the service's arrayValue: of any depth, with NULLs; lower bounds have no place in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

Items = list[Any]  # of values or of Items; every level of PostgreSQL's arrays is of one length


def array_value(items: Items, member: str) -> dict[str, Any]:
    """Return the arrayValue whose innermost arrays are `member` (longValues, ...)."""
    if items and isinstance(items[0], list):
        return {"arrayValues": [array_value(inner, member) for inner in items]}
    return {member: items}


def mapped(items: Items, change: Callable[[Any], Any]) -> Items:
    """Return the array with each value changed but NULLs."""
    if items and isinstance(items[0], list):
        return [mapped(inner, change) for inner in items]
    return [None if item is None else change(item) for item in items]


def as_doubles(texts: Items) -> tuple[str, Items]:
    """Return the member and the numbers; JSON has no NaN and no infinity, an array with one of them stays text."""
    numbers = mapped(texts, float)
    if all(isfinite(number) for number in _values(numbers)):
        return "doubleValues", numbers
    return "stringValues", texts


def as_numbers(texts: Items, number: Callable[[str], int | float | str]) -> tuple[str, Items]:
    """Return the member and the numbers: longs if all are, doubles if some are, text if one fits neither."""
    numbers = mapped(texts, number)
    kinds = {type(value) for value in _values(numbers)}
    if str in kinds:
        return "stringValues", texts
    return ("doubleValues", mapped(numbers, float)) if float in kinds else ("longValues", numbers)


def _values(items: Items) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield from _values(item)
        elif item is not None:
            yield item
