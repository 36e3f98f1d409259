"""Relays on loopback in a process of their own: the ways between nodes that have only addresses.

Where the kernel permits it (to root), a way that is silent loses what comes to its sockets before TCP acknowledges it:
both sides retransmit, and their keepalives and timeouts end the connections as they would in a network. Elsewhere it
holds the bytes, and imitates the target's keepalives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emberpool_local.lab.commanded import CommandedProcess

PROGRAM = "emberpool_local.lab.relay_process"


class Relays(CommandedProcess):
    """with Relays() as relays; addresses are 127.x.y.z, and who listens at a way's end sees the source's address."""

    def __init__(self, launcher: Sequence[str] = ()) -> None:
        super().__init__(PROGRAM, launcher=launcher)

    def loses_packets(self) -> bool:
        """Whether silence is TCP's too, and losses are packets'."""
        found: bool = self.tell("loses_packets")
        return found

    def way(self, source: str, target: str, port: int) -> int:
        """Return the port on 127.0.0.1 at which `source` reaches this port of `target`; the same one each time."""
        found: int = self.tell("way", source, target, port)
        return found

    def silence(self, number: int, a: str, b: str | None, **ends: float) -> None:
        """Let nothing through between two addresses (None: everybody) until end(number).

        The keepalives of the target's side take effect after `pool_seconds`, for control connections of agents after
        `control_seconds`; by default when the kernel does it, or after some seconds where bytes are held.
        """
        asked: dict[str, Any] = {"is_silent": True}
        self.tell("rule", number, a, b, asked, ends)

    def remove(self, number: int, address: str) -> None:
        """Lose, from in a moment on, all that goes from or to an address."""
        self.tell("remove", number, address)

    def end(self, number: int) -> None:
        """End a rule; connections that one side's keepalives have ended are reset."""
        self.tell("end", number)
