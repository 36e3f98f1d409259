"""The tasks of one pool, each with an address of its own on loopback, behind a balancer."""

from __future__ import annotations

import itertools
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emberpool_local.host.ports import free_port
from emberpool_local.lab.balancer import Balancer

from .conftest import CLIENT_PASSWORD, CLIENT_USER, DATABASE, Proxy, wait_until


@dataclass
class Tasks:
    """Starts tasks as ECS does: they share both ports, and their addresses are 127.0.0.2, .3 and so on."""

    make_proxy: Callable[..., Proxy]
    balancer: Balancer
    settings: dict[str, object] = field(default_factory=dict)
    client_port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    numbers: Any = field(default_factory=lambda: itertools.count(2))

    def start(self, **settings: object) -> Proxy:
        """Start one more task; return it once the balancer sends it connections."""
        host = f"127.0.0.{next(self.numbers)}"
        task = self.make_proxy(
            listen_host=host,
            client_port=self.client_port,
            health_port=self.health_port,
            **{**self.settings, **settings},
        ).start()
        wait_until(f"{host} did not become ready", lambda: task.exit_code() is not None or is_ready(task))
        assert task.exit_code() is None, task.printed()
        self.balancer.add(self.target(task))
        return task

    def target(self, task: Proxy) -> tuple[str, int, int]:
        """Return how the balancer knows the task."""
        return task.setting("listen_host"), self.client_port, self.health_port


def is_ready(task: Proxy) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        with urllib.request.urlopen(f"http://{task.setting('listen_host')}:{task.setting('health_port')}/readyz"):
            return True
    except OSError:
        return False


def handler_environment(balancer: Balancer) -> dict[str, str]:
    """Return the variables of a function behind the balancer."""
    return {
        "EMBERPOOL_HOST": "127.0.0.1",
        "EMBERPOOL_PORT": str(balancer.port),
        "EMBERPOOL_DATABASE": DATABASE,
        "EMBERPOOL_USER": CLIENT_USER,
        "EMBERPOOL_PASSWORD": CLIENT_PASSWORD,
        "EMBERPOOL_SSLMODE": "require",  # each task has made a certificate of its own
        "EMBERPOOL_METRICS": "off",
    }
