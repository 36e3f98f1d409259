"""What a fault of the lab is; the table of them is the package's."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emberpool_local.lab.rig import Rig

Happen = Callable[["Rig", random.Random], AbstractAsyncContextManager[str]]


def is_always_possible(rig: Rig) -> bool:  # noqa: ARG001 (the form of a condition)
    """Return True: the fault needs nothing of the rig."""
    return True


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and what the design promises of it.

    `happen(rig, chance)` is an asynchronous context manager. Entering it makes the fault happen and yields the subject
    in words (`task 10.77.0.21`, `the database`); who entered it stays inside for some of `lasts_seconds`, from (least,
    most); leaving it heals what does not heal by itself and returns when the rig is whole again: as many tasks as
    before, all of them ready.
    """

    name: str
    title: str
    promise: str  # the failure table's sentence
    happen: Happen
    # An invocation may fail that was under way between the fault's beginning and so many seconds after its end; None:
    # no invocation may fail by it.
    may_fail_seconds: float | None = None
    most_failures: int | None = None  # None: as many as were under way
    lasts_seconds: tuple[float, float] = (0.0, 0.0)
    needs_namespaces: bool = False
    is_possible: Callable[[Rig], bool] = is_always_possible  # now, by what the rig has and what has happened lately
    weight: float = 1.0  # in a random sequence
