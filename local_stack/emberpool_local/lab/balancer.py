"""A TCP balancer in a process of its own, which behaves as a Network Load Balancer does, only faster.

New connections go to the healthy targets in turn. A target is healthy while its `/readyz` answers 200, or while it
takes connections. One that has become unhealthy, or was taken out, gets new connections for `notice_seconds` more, as
an NLB's nodes hear of a change late; its connections live on until one side closes them or the deregistration delay
is over. A connection that has been idle for too long is forgotten: the next packet is answered with a reset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, Self

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.commanded import CommandedProcess
from emberpool_local.lab.network import LabNetwork, Node

PROGRAM = "emberpool_local.lab.balancer_process"
HEALTHY_SECONDS = 30.0

Target = tuple[str, int, int]  # host, client port, health port


@dataclass(frozen=True)
class BalancerOptions:
    """What the process is told at its start; the names are an NLB's where it has one."""

    address: str = LOOPBACK
    source: str | None = None  # where its own connections come from
    notice_seconds: float = 0.5
    health: Literal["http", "tcp"] = "http"
    idle_seconds: float | None = None  # None: no connection is forgotten by itself
    deregistration_seconds: float | None = None  # then connections to a removed target are reset; None: never


class Balancer:
    """The balancer as the lab sees it, at the network's node "balancer" or, without a network, on 127.0.0.1.

    The constructor starts nothing: with Balancer(network) as balancer.
    """

    def __init__(
        self,
        network: LabNetwork | None = None,
        *,
        notice_seconds: float = 0.5,
        health: Literal["http", "tcp"] = "http",
        idle_seconds: float | None = None,
        deregistration_seconds: float | None = None,
    ) -> None:
        self._network = network
        self.node = network.node("balancer") if network else Node("balancer", LOOPBACK)
        self.targets: list[Target] = []
        self.address = ""  # where functions reach it, with `port`; known once it is open
        self.port = 0
        options = BalancerOptions(
            address=self.node.address,
            source=self.node.address if network else None,
            notice_seconds=notice_seconds,
            health=health,
            idle_seconds=idle_seconds,
            deregistration_seconds=deregistration_seconds,
        )
        self._process = CommandedProcess(PROGRAM, [json.dumps(asdict(options))], self.node.launcher)

    def __enter__(self) -> Self:
        self._process.open()
        port: int = self._process.tell("port")
        self.address, self.port = self.node.address, port
        if self._network:
            self.address, self.port = self._network.way(self._network.node("functions"), self.node, port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    def add(self, target: Target) -> None:
        """Register a target; return once new connections go there. Raises TimeoutError."""
        self.targets.append(target)
        self._tell_targets()
        host, port, _ = target
        wait_until(f"{host}:{port} did not become healthy", lambda: self.is_healthy(target), HEALTHY_SECONDS)

    def remove(self, target: Target) -> None:
        """Deregister a target: no new connection after `notice_seconds`."""
        self.targets.remove(target)
        self._tell_targets()

    def is_healthy(self, target: Target) -> bool:
        """Whether new connections go to the target."""
        return list(target) in self._process.tell("healthy")

    def connections(self) -> Mapping[str, int]:
        """Return how many connections there are to each host of a target; forgotten ones are not counted."""
        counts: dict[str, int] = self._process.tell("connections")
        return counts

    def forget_idle(self, idle_seconds: float = 0.0, silently: bool = False) -> int:
        """Forget the connections that nothing has passed for so long, as after the idle timeout; return how many.

        Neither side is told; the next packet is answered with a reset or, `silently`, with nothing, not even by TCP.
        """
        clients = self._process.tell("forget", idle_seconds, silently)
        if silently and self._network:
            self._network.forget_clients(clients)
        return len(clients)

    def _tell_targets(self) -> None:
        ways = [(target, self._way(target)) for target in self.targets]
        self._process.tell("targets", ways)

    def _way(self, target: Target) -> tuple[str, int, str, int]:
        host, port, health_port = target
        if self._network is None:
            return host, port, host, health_port
        node = Node(host, host)
        return *self._network.way(self.node, node, port), *self._network.way(self.node, node, health_port)
