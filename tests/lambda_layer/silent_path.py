"""A path to a server that can start to drop packets without a word, as a load balancer or a dead host does.

Two network namespaces joined by a veth pair where the tests run as root. They belong to threads of this process and
nothing else holds them, so the kernel removes them with all that is in them, whatever ends the test. Elsewhere a relay
that stops forwarding: to the layer it looks the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from emberpool_local.host.system_packages import ensure_packages

ResultT = TypeVar("ResultT")

CLONE_NEWNET = 0x40000000
# Reserved for documentation (RFC 5737), and only ever used inside of the two namespaces.
NEAR, FAR, OTHER_NEAR = "192.0.2.1", "192.0.2.2", "192.0.2.3"
# Nothing of ours waits for long; what does wait for TCP takes minutes.
LONGEST_CALL_SECONDS = 40.0


class SilentPath(Protocol):
    """A way to the server on (host, port), and what may become of it."""

    host: str
    port: int

    def call(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Call `function` where the path begins. Raises TimeoutError when it waits for TCP."""

    def drop_everything(self) -> None:
        """Drop all packets from now on."""

    def drop_open_connections(self) -> None:
        """Drop the packets of what is connected now; new connections work."""

    def restore(self) -> None:
        """Let packets through again."""


class Relay:
    """Forwards TCP connections that arrive at a listening socket to the server; can stop to, without closing."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._listener = listener
        self._target = target
        self._sockets: list[socket.socket] = []
        self._muted: set[socket.socket] = set()
        self.is_muted = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def mute_open_connections(self) -> None:
        self._muted.update(self._sockets)

    def close(self) -> None:
        for opened in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        self._accepting.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (self.is_muted or source in self._muted):
                    sink.sendall(data)
            if not (self.is_muted or source in self._muted):
                sink.shutdown(socket.SHUT_WR)


class RelayPath:
    """A SilentPath for everybody: a relay on 127.0.0.1."""

    def __init__(self, target: tuple[str, int]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = listener.getsockname()
        self._relay = Relay(listener, target)
        self._caller = ThreadPoolExecutor(1)
        self.drop_open_connections = self._relay.mute_open_connections

    def call(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return self._caller.submit(function, *arguments).result(LONGEST_CALL_SECONDS)

    def drop_everything(self) -> None:
        self._relay.mute_open_connections()
        self._relay.is_muted = True

    def restore(self) -> None:
        self._relay.is_muted = False

    def close(self) -> None:
        self._relay.close()
        self._caller.shutdown()


class Namespace:
    """A network namespace with one thread that lives in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.path = self.call(_enter_new_network_namespace)

    def call(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return self._thread.submit(function, *arguments).result(LONGEST_CALL_SECONDS)

    def ip(self, command: str) -> None:
        # A child of this thread is in its namespace.
        self.call(lambda: subprocess.run(["ip", *command.split()], check=True, timeout=10))

    def close(self) -> None:
        self._thread.shutdown()


def _enter_new_network_namespace() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace could be made")
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


class NamespacePath:
    """A SilentPath for root: packets really go over a veth pair, and are really lost."""

    host = FAR

    def __init__(self, target: tuple[str, int]) -> None:
        self._near, self._far = Namespace(), Namespace()
        self._near.ip(f"link add near type veth peer name far netns {self._far.path}")
        for namespace, link, address in ((self._near, "near", NEAR), (self._far, "far", FAR)):
            namespace.ip(f"address add {address}/24 dev {link}")
            namespace.ip(f"link set {link} up")
        # A socket stays in the namespace where it was made, whichever thread uses it.
        listener = self._far.call(socket.create_server, (FAR, 0))
        self.port = listener.getsockname()[1]
        self._relay = Relay(listener, target)
        self.call = self._near.call

    def drop_everything(self) -> None:
        self._far.ip("link set far down")

    def drop_open_connections(self) -> None:
        # Nothing finds its way back to the address that they come from; new ones come from another.
        self._far.ip(f"route add blackhole {NEAR}/32")
        self._near.ip(f"address add {OTHER_NEAR}/24 dev near")
        self._near.ip(f"route add {FAR}/32 dev near src {OTHER_NEAR}")

    def restore(self) -> None:
        self._far.ip("link set far up")

    def close(self) -> None:
        self._relay.close()
        self._near.close()
        self._far.close()


@contextlib.contextmanager
def silent_path(target: tuple[str, int]) -> Iterator[SilentPath]:
    """A path to `target`; all of it is gone afterwards."""
    if os.geteuid() == 0:
        ensure_packages(["iproute2"], "join two network namespaces")
    path = NamespacePath(target) if os.geteuid() == 0 else RelayPath(target)
    try:
        yield path
    finally:
        path.close()
