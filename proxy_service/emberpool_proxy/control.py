"""What the supervisor and the agent tell each other, over a pair of connected sockets.

Each message is one packet of JSON. The supervisor never waits for the agent: a packet that does not fit is dropped,
since what matters (`Engines`) is said again every second.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

LONGEST_PACKET_BYTES = 65_536
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class EngineState:
    """One PgBouncer process as the supervisor knows it; `pid` is 0 while it does not run."""

    index: int
    pid: int
    restarts: int


@dataclass(frozen=True)
class EnginesAre:
    """Supervisor to agent, each second and at each change: the processes, and whether to drain."""

    engines: tuple[EngineState, ...]
    is_started: bool
    is_draining: bool
    agent_restarts: int


@dataclass(frozen=True)
class LogLine:
    """Supervisor to agent: one line that PgBouncer `index` wrote."""

    index: int
    line: str


@dataclass(frozen=True)
class StartEngines:
    """Agent to supervisor: the files are there, start every PgBouncer."""


@dataclass(frozen=True)
class EngineAnswers:
    """Agent to supervisor: the console of this process answered; it did not fail at start."""

    index: int
    pid: int


@dataclass(frozen=True)
class KillEngine:
    """Agent to supervisor: this process hangs, or must start again with other files."""

    index: int
    pid: int


@dataclass(frozen=True)
class Beat:
    """Agent to supervisor, each second: the agent is not frozen."""


Message = EnginesAre | LogLine | StartEngines | EngineAnswers | KillEngine | Beat
_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (EnginesAre, LogLine, StartEngines, EngineAnswers, KillEngine, Beat)
}


class Channel:
    """One end of the pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """Return the supervisor's end, and the socket whose descriptor the agent inherits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(ours), theirs

    def send(self, message: Message) -> bool:
        """Send without waiting; return False when the other side is gone or does not read."""
        packet = json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()
        try:
            self._end.send(packet[:LONGEST_PACKET_BYTES])
        except (BlockingIOError, OSError):
            return False
        return True

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what the other side says until it is gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(self._end, LONGEST_PACKET_BYTES)
            except OSError:
                return
            if not packet:
                return
            if message := _parsed(packet):
                yield message

    def close(self) -> None:
        """Close this end; the other one reads the end of the stream."""
        self._end.close()


def _parsed(packet: bytes) -> Message | None:
    try:
        values: dict[str, Any] = json.loads(packet)
    except ValueError:  # a log line longer than a packet was cut
        return None
    kind = _KINDS[values.pop("kind")]
    if kind is EnginesAre:
        values["engines"] = tuple(EngineState(**engine) for engine in values["engines"])
    return kind(**values)
