"""The lab's network: nodes with addresses, ways between them, and what may become of these ways.

Two kinds behave alike as far as they can. "namespaces" (root on Linux) has real packets: a silent way is silent for TCP
too, which retransmits and times out by itself. "loopback" (everybody) has relays between the nodes: only what goes by
way() can be silenced. Root's relays lose what comes to them, others' hold it and imitate what TCP makes of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

NetworkKind = Literal["namespaces", "loopback"]


@dataclass(frozen=True)
class Node:
    """One address of the lab. Only a task has a namespace of its own; the other nodes share the command's."""

    name: str
    address: str
    launcher: tuple[str, ...] = ()  # becomes the program that it is given: the process id stays the same

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `argv` at this node, for root; give it to start_child() as any other."""
        return [*self.launcher, *map(str, argv)]


class LabNetwork(Protocol):
    """A network that is open. Every method may be called from any thread and returns within milliseconds."""

    @property
    def kind(self) -> NetworkKind:
        """How silence is made: "namespaces" drops packets, "loopback" holds bytes."""

    @property
    def loses_packets(self) -> bool:
        """Whether a silent way is silent for TCP: what is sent is not acknowledged, and nobody connects."""

    @property
    def reason(self) -> str:
        """Why it is not "namespaces", as a sentence; empty when it is."""

    def node(self, name: str) -> Node:
        """Return the node of this name, made at its first use: functions, balancer, primary, standby, aws, ...

        A server of it binds `address`, and so does who connects from it; a connection that binds nothing comes from
        "functions". 127.0.0.1 is nobody's: what goes there is never impaired. Not for tasks.
        """

    def way(self, source: Node, target: Node, port: int) -> tuple[str, int]:
        """Return the host and port at which `source` reaches this port of `target`; the same ones each time."""

    def add_task(self, *, resolv_conf: str | None = None, tmpfs: Mapping[Path, int] | None = None) -> Node:
        """Make the node of one more task, "task-1" and so on.

        "namespaces": `resolv_conf` is what its programs see as /etc/resolv.conf, and a tmpfs of so many bytes is
        mounted at each path of `tmpfs`, seen by the lab too until remove(). "loopback": both are ignored, the folders
        made.
        """

    def remove(self, node: Node) -> None:
        """Take a task's node away, its programs have ended. What is sent there later is lost without an answer."""

    def silence(self, a: Node, b: Node | None = None) -> AbstractContextManager[None]:
        """Let nothing through between `a` and `b`, in both directions, without a word; None: everybody else."""

    def impair(
        self,
        a: Node,
        b: Node | None = None,
        *,
        delay_seconds: float = 0.0,
        jitter_seconds: float = 0.0,
        loss: float = 0.0,
    ) -> AbstractContextManager[None]:
        """Delay and lose packets between `a` and `b` (None: everybody else) in both directions.

        `delay_seconds` is one direction's: a round trip takes twice as long. Up to `jitter_seconds` come on top, evenly
        spread; packets keep their order. `loss` is the probability for each packet. What overlaps adds up.
        """

    def forget(self, a: Node, b: Node | None = None) -> None:
        """Drop from now on, without a word, what belongs to connections that exist now; new ones get through."""

    def forget_clients(self, ends: Sequence[tuple[str, int]]) -> None:
        """Do so with the connections of these clients' addresses and ports, as their server sees them.

        For a server that has gone silent itself: a relay before it would go on to answer. Packets need nothing.
        """


@contextmanager
def open_network(
    kind: NetworkKind | None = None, progress: Callable[[str], None] = lambda _: None
) -> Iterator[LabNetwork]:
    """Open the network of a lab: "namespaces" where this machine gives them, else "loopback".

    "namespaces" moves the calling thread, and every thread and child that starts from it meanwhile, into a network and
    a mount namespace of its own: it cannot reach the package registries, so what has to be fetched is fetched before.
    The same thread leaves it. Nothing is left behind, whatever ends this process. Raises NetworkUnavailable when
    `kind` is asked for and not to be had.
    """
    from emberpool_local.lab.packet_network import PacketNetwork, why_no_namespaces  # noqa: PLC0415 (they import this)

    reason = "it was asked for" if kind == "loopback" else why_no_namespaces()
    if kind == "namespaces" or not reason:
        with PacketNetwork() as packets:
            yield packets
        return
    from emberpool_local.lab.relay_network import RelayNetwork  # noqa: PLC0415

    if kind is None:
        progress(f"{reason}: the lab uses loopback addresses and relays instead")
    with RelayNetwork(reason) as relays:
        yield relays
