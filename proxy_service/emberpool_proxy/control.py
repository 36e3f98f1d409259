"""What the supervisor and the agent tell each other, over a pair of connected sockets.

Each message is one packet of JSON. The supervisor never waits for the agent: a packet that does not fit is dropped,
since what matters (`Engines`) is said again every second. A packet may carry one open descriptor.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

LONGEST_PACKET_BYTES = 65_536
BEAT_SECONDS = 1.0
NO_DESCRIPTOR = -1
DESCRIPTOR = struct.Struct("i")


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


@dataclass(frozen=True)
class HoldConnection:
    """Agent to supervisor: keep this socket open, in place of the one before.

    It is the control connection's, whose session has the locks that PgBouncer's server connections rely on: they must
    outlive a crash of the agent. `descriptor` is set by who receives it, whose it then is.
    """

    descriptor: int = NO_DESCRIPTOR


@dataclass(frozen=True)
class DropConnection:
    """Agent to supervisor: close the socket that you keep."""


Message = EnginesAre | LogLine | StartEngines | EngineAnswers | KillEngine | Beat | HoldConnection | DropConnection
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


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

    def send(self, message: Message, descriptor: int | None = None) -> bool:
        """Send without waiting; return False when the other side is gone or does not read.

        The other side gets a duplicate of `descriptor`; ours stays open.
        """
        packet = json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()[:LONGEST_PACKET_BYTES]
        try:
            socket.send_fds(self._end, [packet], [] if descriptor is None else [descriptor])
        except OSError:
            return False
        return True

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what the other side says until it is gone."""
        while True:
            try:
                packet, descriptor = self._received()
            except BlockingIOError:
                await self._is_readable()
                continue
            except OSError:
                return
            if not packet:
                return
            message = _parsed(packet)
            if isinstance(message, HoldConnection):
                if descriptor != NO_DESCRIPTOR:  # none can be received when too many are open
                    yield HoldConnection(descriptor)
                continue
            if descriptor != NO_DESCRIPTOR:
                os.close(descriptor)
            if message:
                yield message

    def _received(self) -> tuple[bytes, int]:
        # Not socket.recv_fds, which ignores its flags: what we start must not inherit it, from the first moment. With
        # room for one, the kernel closes what else is sent.
        packet, ancillary, *_ = self._end.recvmsg(
            LONGEST_PACKET_BYTES, socket.CMSG_LEN(DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= DESCRIPTOR.size:
                return packet, DESCRIPTOR.unpack_from(data)[0]
        return packet, NO_DESCRIPTOR

    async def _is_readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._end, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._end)

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
