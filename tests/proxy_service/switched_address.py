"""An address that a test can lead to another server: what a database's DNS name is in a failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
BLOCK_BYTES = 65_536


@dataclass
class SwitchedAddress:
    """Listens on `port` and forwards to `target`; a target that does not listen makes it hang up at once."""

    target: int
    port: int = 0
    delay_seconds: float = 0.0  # before a connection is led on: a login across zones, a server that is busy
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def switch(self, target: int) -> None:
        """Lead new connections to `target`; those that exist stay where they are, as with DNS."""
        self.target = target

    def cut(self) -> None:
        """End the connections that exist, without a goodbye."""
        for writer in self._open:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.delay_seconds)
        try:
            there_reader, there_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        except asyncio.CancelledError:
            return  # the test is over; asyncio would log it as an error of ours
        finally:
            for end in (writer, there_writer):
                self._open.discard(end)
                end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def switched_address(target: int) -> AsyncIterator[SwitchedAddress]:
    """Forward to 127.0.0.1:`target` until told otherwise."""
    address = SwitchedAddress(target)
    server = await asyncio.start_server(address.forward, HOST, 0)
    address.port = server.sockets[0].getsockname()[1]
    try:
        yield address
    finally:
        server.close()
        address.cut()
