"""An address that can be led to another server: what a database's DNS name is, where there is none to change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from emberpool_local.host.ports import LOOPBACK

BLOCK_BYTES = 65_536


@dataclass
class SwitchedAddress:
    """Listens on `port` and forwards to `target`; a target that does not listen makes it hang up at once."""

    target: tuple[str, int]
    host: str = LOOPBACK
    port: int = 0
    held: int = 0  # connections that wait for `lead_on()`
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _leads: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._leads.set()

    def hold(self) -> None:
        """Let new connections wait, as a server does that is too busy to answer; those that exist go on."""
        self._leads.clear()

    def lead_on(self) -> None:
        """Lead on those that wait, and those that come."""
        self._leads.set()

    def switch(self, host: str, port: int) -> None:
        """Lead new connections to another server; those that exist stay where they are, as with DNS."""
        self.target = (host, port)

    def cut(self) -> None:
        """End the connections that exist, without a goodbye."""
        for writer in self._open:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self.held += 1
        await self._leads.wait()
        self.held -= 1
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        except asyncio.CancelledError:
            return  # whoever opened the address is done with it; asyncio would log it as an error of ours
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
async def switched_address(host: str, port: int) -> AsyncIterator[SwitchedAddress]:
    """Forward to this server until told otherwise."""
    address = SwitchedAddress((host, port))
    server = await asyncio.start_server(address.forward, address.host, 0)
    address.port = server.sockets[0].getsockname()[1]
    try:
        yield address
    finally:
        server.close()
        address.cut()
