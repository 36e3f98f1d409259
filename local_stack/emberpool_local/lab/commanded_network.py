"""What both kinds of network tell their process: rules between two nodes, which hold while a context is open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from emberpool_local.lab.commanded import CommandedProcess
from emberpool_local.lab.network import Node

# Where connections come from that bind no address of their own.
FIRST_NAME = "functions"


class CommandedNetwork:
    """The rules of a LabNetwork; its process keeps them."""

    def __init__(self, process: CommandedProcess) -> None:
        self._process = process
        self._numbers = count(1)

    @contextmanager
    def silence(self, a: Node, b: Node | None = None) -> Iterator[None]:
        """See LabNetwork."""
        with self._rule(a, b, {"is_silent": True}):
            yield

    @contextmanager
    def impair(
        self,
        a: Node,
        b: Node | None = None,
        *,
        delay_seconds: float = 0.0,
        jitter_seconds: float = 0.0,
        loss: float = 0.0,
    ) -> Iterator[None]:
        """See LabNetwork."""
        asked = {"delay_seconds": delay_seconds, "jitter_seconds": jitter_seconds, "loss": loss}
        if min(asked.values()) < 0 or loss > 1:
            raise ValueError(f"delays must not be negative and loss must be between 0 and 1, got {asked}")
        with self._rule(a, b, asked):
            yield

    def forget(self, a: Node, b: Node | None = None) -> None:
        """See LabNetwork."""
        self._process.tell("forget", next(self._numbers), a.address, b and b.address)

    @contextmanager
    def _rule(self, a: Node, b: Node | None, asked: Mapping[str, float | bool]) -> Iterator[None]:
        number = next(self._numbers)
        self._process.tell("rule", number, a.address, b and b.address, asked, {})
        try:
            yield
        finally:
            self._process.tell("end", number)
