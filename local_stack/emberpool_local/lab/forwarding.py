"""One TCP connection that is led on to another server: the two ends, and what passes between them.

The balancer and the relays decide where to and what becomes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from emberpool_local.lab.socket_filter import Socket

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class End(asyncio.Protocol):
    """One side's end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def was_open(self) -> bool:
        """Whether it has ever been connected."""
        return self.transport is not None

    @property
    def address(self) -> tuple[str, int] | None:
        """Our address and port, None before it is connected."""
        return self.transport.get_extra_info("sockname") if self.transport else None

    @property
    def peer(self) -> tuple[str, int] | None:
        """The other side's address and port, None before it is connected."""
        return self.transport.get_extra_info("peername") if self.transport else None

    @property
    def socket(self) -> Socket | None:
        """The socket while it is open."""
        if self.transport is None or self.transport.is_closing():
            return None
        found: Socket = self.transport.get_extra_info("socket")
        return found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a TCP connection was expected, not {transport!r}")
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.end_made(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._connection.received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._connection.lost(self, is_reset=error is not None)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: who sends here is not read from meanwhile."""
        self._connection.hold(self._connection.other(self))

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._connection.let_go(self._connection.other(self))

    def write(self, data: bytes) -> None:
        """Send, unless it is closed."""
        if self.is_open and self.transport:
            self.transport.write(data)

    def close(self) -> None:
        """Close it once all is sent."""
        if self.transport:
            self.transport.close()

    def reset(self) -> None:
        """Let the other side's next call fail: what was not sent or read yet is lost."""
        if self.transport and (own := self.socket):
            with contextlib.suppress(OSError):  # it is closed already
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self.transport.abort()


class Connection:
    """A client's connection and ours to the server that it is led on to."""

    def __init__(self) -> None:
        self.near = End(self)
        self.far: End | None = None
        self._early = bytearray()  # what the client sent before the server answered

    def other(self, end: End) -> End | None:
        """Return the other end."""
        return self.far if end is self.near else self.near

    async def dial(self, host: str, port: int, source: str | None) -> None:
        """Connect to the server, from the address `source`; a server that refuses is a reset to the client."""
        far = End(self)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: far, host, port, local_addr=(source, 0) if source else None
            )
        except OSError:
            self.near.reset()
            return
        if not self.near.is_open:
            far.reset()
            return
        self.far = far
        early, self._early = bytes(self._early), bytearray()
        if early:
            self.received(self.near, early)

    def reset(self) -> None:
        """Reset both sides."""
        self.near.reset()
        if self.far:
            self.far.reset()

    # --- what the ends tell

    def end_made(self, end: End) -> None:
        """Take note of an end that is connected now."""

    def received(self, end: End, data: bytes) -> None:
        """Pass on what came from one end."""
        if self.far is None:
            self._early += data
        elif other := self.other(end):
            other.write(data)

    def lost(self, end: End, *, is_reset: bool) -> None:
        """Close the other end too: a reset stays a reset, and what was sent last is lost."""
        if other := self.other(end):
            if is_reset:
                other.reset()
            else:
                other.close()

    def hold(self, end: End | None) -> None:
        """Read no more from an end."""
        if end and end.is_open and end.transport:
            end.transport.pause_reading()

    def let_go(self, end: End | None) -> None:
        """Read from an end again."""
        if end and end.is_open and end.transport:
            end.transport.resume_reading()
