"""The network of namespaces: real packets over TUN devices, and a router of ours that delays and loses them.

The command's own namespace has the functions, the balancer, the databases and whatever else the lab runs, each with an
address; what goes from one of them to another passes the router while a rule may hold for it, and is the kernel's own
otherwise. Each task has a namespace of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from emberpool_local.errors import NetworkUnavailable
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.lab import namespaces
from emberpool_local.lab.commanded import CommandedProcess
from emberpool_local.lab.commanded_network import FIRST_NAME, CommandedNetwork
from emberpool_local.lab.network import Node

NETWORK = "10.77.0.0/16"
MAIN_ADDRESSES = [f"10.77.0.{number}" for number in range(1, 33)]
TASKS_A_NETWORK = 250
ROUTER = "emberpool_local.lab.packet_router"
# Entering a mount namespace leads to its root: the program is to begin in the folder that it was started in.
ENTER = (
    'net=$1 mnt=$2; shift 2; exec nsenter --net="$net" --mount="$mnt" -- '
    """/bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"\n"""
)


def why_no_namespaces() -> str:
    """Return what this machine lacks for the network of namespaces; empty when it has all."""
    if os.geteuid() != 0:
        return "Network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "There is no /dev/net/tun"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"The program {program} is missing (iproute2, util-linux)"
    try:
        namespaces.in_new_thread(_try_namespaces)
    except OSError as error:
        return f"The kernel gives no namespaces ({error.strerror or error})"
    return ""


class PacketNetwork(CommandedNetwork):
    """A LabNetwork of namespaces: with PacketNetwork() as network. Raises NetworkUnavailable."""

    kind: Literal["namespaces"] = "namespaces"
    loses_packets = True
    reason = ""

    def __init__(self) -> None:
        self._router = CommandedProcess(ROUTER)
        super().__init__(self._router)
        self._folder = TempFolder("lab-network")
        self._nodes: dict[str, Node] = {}
        self._mounts: dict[str, list[Path]] = {}
        self._main_numbers = iter(MAIN_ADDRESSES)
        self._task_numbers = count(1)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if problem := why_no_namespaces():
            raise NetworkUnavailable(f"{problem}: the lab cannot lose packets here", "Leave the kind of network open")
        with ExitStack() as stack:
            folder = stack.enter_context(self._folder)
            folder.chmod(0o755)
            stack.enter_context(namespaces.own_namespaces())
            stack.enter_context(self._router)
            self._router.tell("main", NETWORK, MAIN_ADDRESSES)
            self.node(FIRST_NAME)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [node for node in self._nodes.values() if node.launcher]:
            self.remove(node)
        self._open.close()

    def node(self, name: str) -> Node:
        """See LabNetwork."""
        if name not in self._nodes:
            self._nodes[name] = Node(name, next(self._main_numbers))
        return self._nodes[name]

    def way(self, source: Node, target: Node, port: int) -> tuple[str, int]:  # noqa: ARG002 (relays need the source)
        """See LabNetwork."""
        return target.address, port

    def add_task(self, *, resolv_conf: str | None = None, tmpfs: Mapping[Path, int] | None = None) -> Node:
        """See LabNetwork."""
        number = next(self._task_numbers)
        name, address = f"task-{number}", _task_address(number)
        resolver = None
        if resolv_conf is not None:
            resolver = self._folder.path / f"{name}.resolv.conf"
            resolver.write_text(resolv_conf)
            resolver.chmod(0o644)
        self._mounts[name] = list(tmpfs or ())
        namespaces.mount_tmpfs(tmpfs or {})
        files = self._router.tell("task", address, NETWORK, None if resolver is None else str(resolver))
        entrances = (f"/proc/{self._router.pid}/fd/{file}" for file in files)
        self._nodes[name] = Node(name, address, ("/bin/sh", "-c", ENTER, "sh", *entrances))
        return self._nodes[name]

    def remove(self, node: Node) -> None:
        """See LabNetwork."""
        del self._nodes[node.name]
        self._router.tell("remove", node.address)
        for folder in self._mounts.pop(node.name):
            with suppress(OSError):
                namespaces.unmount(folder)

    def forget_clients(self, ends: Sequence[tuple[str, int]]) -> None:
        """See LabNetwork."""

    def packets(self) -> Mapping[str, int]:
        """Return how many packets were forwarded and dropped."""
        counts: dict[str, int] = self._router.tell("counts")
        return counts


def _task_address(number: int) -> str:
    network, host = divmod(number - 1, TASKS_A_NETWORK)
    return f"10.77.{network + 1}.{host + 1}"


def _try_namespaces() -> None:
    """Make what the network needs in a thread that ends at once, and so takes it all away."""
    namespaces.unshare(namespaces.CLONE_NEWNET | namespaces.CLONE_NEWNS)
    namespaces.mount(None, Path("/"), namespaces.MS_REC | namespaces.MS_SLAVE)
    os.close(namespaces.open_tun("lab0"))
