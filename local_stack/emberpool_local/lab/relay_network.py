"""The network of relays: every node is an address on loopback, and what goes by way() can be silenced and slowed down.

For everybody: it needs no device. What connects past way(), as tasks do among themselves, is not reached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.lab.commanded_network import FIRST_NAME, CommandedNetwork
from emberpool_local.lab.network import Node
from emberpool_local.lab.relays import Relays

TASKS_A_NETWORK = 250


class RelayNetwork(CommandedNetwork):
    """A LabNetwork on loopback: with RelayNetwork("why") as network. `launcher` runs the relays, as a node's does."""

    kind: Literal["loopback"] = "loopback"

    def __init__(self, reason: str, launcher: Sequence[str] = ()) -> None:
        self._relays = Relays(launcher)
        super().__init__(self._relays)
        self.reason = reason
        self.loses_packets = False  # known once it is open
        # Two labs on one machine have addresses of their own.
        self._prefix = f"127.{1 + os.getpid() % 250}"
        self._nodes = {FIRST_NAME: Node(FIRST_NAME, f"{self._prefix}.0.1")}
        self._main_numbers = count(2)
        self._task_numbers = count(1)

    def __enter__(self) -> Self:
        self._relays.open()
        self.loses_packets = self._relays.loses_packets()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._relays.close()

    def node(self, name: str) -> Node:
        """See LabNetwork."""
        if name not in self._nodes:
            self._nodes[name] = Node(name, f"{self._prefix}.0.{next(self._main_numbers)}")
        return self._nodes[name]

    def way(self, source: Node, target: Node, port: int) -> tuple[str, int]:
        """See LabNetwork."""
        return LOOPBACK, self._relays.way(source.address, target.address, port)

    def add_task(self, *, resolv_conf: str | None = None, tmpfs: Mapping[Path, int] | None = None) -> Node:  # noqa: ARG002
        """See LabNetwork."""
        number = next(self._task_numbers)
        network, host = divmod(number - 1, TASKS_A_NETWORK)
        node = Node(f"task-{number}", f"{self._prefix}.{network + 1}.{host + 1}")
        self._nodes[node.name] = node
        for folder in tmpfs or ():
            folder.mkdir(parents=True, exist_ok=True)
        return node

    def forget_clients(self, ends: Sequence[tuple[str, int]]) -> None:
        """See LabNetwork."""
        self._relays.tell("forget_clients", ends)

    def remove(self, node: Node) -> None:
        """See LabNetwork."""
        del self._nodes[node.name]
        self._relays.remove(next(self._numbers), node.address)
