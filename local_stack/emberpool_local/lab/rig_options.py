"""What the lab's rig is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emberpool_local.lab.network import NetworkKind
from emberpool_proxy.settings import AGENT_CONNECTIONS


@dataclass(frozen=True)
class RigOptions:
    """The rig's sizes; the defaults are the lab's."""

    tasks: int = 3
    most_tasks: int = 5  # alive at once, those that vanished and are still counted among them
    floor: int = 2
    slots: int = 16
    max_connections: int = 100
    network: NetworkKind | None = None  # None: namespaces where they can be had
    has_aws: bool = True  # passwords and the CA come from Secrets Manager, simulated; else from variables
    has_clock: bool = True  # each task has a clock that can be shifted, where a compiler is at hand
    query_wait_seconds: float = 10.0
    notice_seconds: float = 0.5  # how late the balancer hears of a target's health
    run_folder_megabytes: int = 8  # of a task's tmpfs
    settings: Mapping[str, str] = field(default_factory=dict)  # further ones of ProxySettings, which win

    @property
    def budget(self) -> int:
        """The server connections of the whole fleet, its agents' among them."""
        return self.most_tasks * (self.floor + AGENT_CONNECTIONS) + self.slots
