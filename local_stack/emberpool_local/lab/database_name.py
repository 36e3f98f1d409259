"""The one name by which the tasks know the database, and to which server it leads: what moves in a failover.

In namespaces it is a DNS name, so that the tasks' own resolvers are part of what is tried. On loopback, where a task
has no resolver of its own, it is an address for each task that forwards to the server of the moment.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.lab.name_service import NameService, open_name_service
from emberpool_local.lab.network import LabNetwork, Node
from emberpool_local.lab.switched_address import SwitchedAddress

DATABASE_HOST = "database.lab"


class DatabaseName(Protocol):
    """The name. All methods may be called from any thread."""

    @property
    def service(self) -> NameService | None:
        """The DNS server that has it, for other names of the lab, too; None on loopback."""

    def known_to(self, task: Node) -> tuple[str, int]:
        """Return the host and the port that a task is given for the database; the same at each call."""

    def lead(self, server: Node) -> None:
        """Let the name lead to another server. Connections that exist stay where they are."""

    def forget(self, task: Node) -> None:
        """Note that a task has ended."""


@contextmanager
def open_database_name(network: LabNetwork, server: Node, port: int) -> Iterator[DatabaseName]:
    """Make the name, which leads to `server`. Raises OSError."""
    if network.kind == "namespaces":
        with open_name_service(network.node("names").address) as service:
            name = _DnsName(service, port)
            name.lead(server)
            yield name
        return
    relays = _RelayedName(network, server, port)
    try:
        yield relays
    finally:
        relays.close()


class _DnsName:
    def __init__(self, service: NameService, port: int) -> None:
        self._service = service
        self._port = port

    @property
    def service(self) -> NameService | None:
        return self._service

    def known_to(self, task: Node) -> tuple[str, int]:  # noqa: ARG002 (all tasks know the same one)
        return DATABASE_HOST, self._port

    def lead(self, server: Node) -> None:
        self._service.lead(DATABASE_HOST, server.address)

    def forget(self, task: Node) -> None:
        pass


class _RelayedName:
    service: NameService | None = None

    def __init__(self, network: LabNetwork, server: Node, port: int) -> None:
        self._network = network
        self._server = server
        self._port = port
        self._known: dict[Node, tuple[SwitchedAddress, asyncio.Server]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab-database-name", daemon=True)
        self._thread.start()

    def known_to(self, task: Node) -> tuple[str, int]:
        if task not in self._known:
            self._run(self._open(task))
        return LOOPBACK, self._known[task][0].port

    def lead(self, server: Node) -> None:
        self._server = server
        for task, (address, _) in list(self._known.items()):
            address.switch(*self._network.way(task, server, self._port))

    def forget(self, task: Node) -> None:
        if task in self._known:
            self._run(self._close(task))

    def close(self) -> None:
        for task in list(self._known):
            self.forget(task)
        self._run(self._end_what_runs())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, task: Node) -> None:
        address = SwitchedAddress(self._network.way(task, self._server, self._port))
        server = await asyncio.start_server(address.forward, address.host, 0)
        address.port = server.sockets[0].getsockname()[1]
        self._known[task] = address, server

    async def _close(self, task: Node) -> None:
        address, server = self._known.pop(task)
        server.close()
        address.cut()

    @staticmethod
    async def _end_what_runs() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*others, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
