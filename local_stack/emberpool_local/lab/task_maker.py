"""Makes the lab's tasks: a node of the network, a run folder, a clock, and the settings as they are deployed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emberpool_local.host.ports import free_port
from emberpool_local.lab.clock import ShiftedClock
from emberpool_local.lab.database import LabDatabase
from emberpool_local.lab.lab_aws import LabAws
from emberpool_local.lab.network import LabNetwork, Node
from emberpool_local.lab.rig_options import RigOptions
from emberpool_local.lab.task import LabTask
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.proxy import DatabaseAccess, LocalProxy

CLIENT_PORT, HEALTH_PORT = 6432, 8080  # in a namespace of its own each task has them all
BUDGET_NAME = "lab"
FLEET_NAME = "tasks.lab"
MEGABYTE = 1024 * 1024
# What is a minute on AWS takes seconds here.
DRAIN_SETTINGS = {"server_idle_seconds": "5", "drain_seconds": "2", "stop_seconds": "20"}
FROM_SECRETS = ("database_user", "database_password", "client_user", "client_password")


@dataclass
class TaskMaker:
    """Makes tasks that are not started yet."""

    options: RigOptions
    network: LabNetwork
    database: LabDatabase
    aws: LabAws | None
    functions_reach: str  # the address of the balancer, which is in the tasks' certificates
    folder: Path
    pgbouncer: PgbouncerProgram
    clock_library: Path | None
    client_password: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)  # without AWS
    made: int = 0
    _ports: tuple[int, int] | None = None

    def make(self, settings: Mapping[str, str]) -> LabTask:
        """Return a task with a node of its own; `settings` win over ours."""
        self.made += 1
        run_folder = self.folder / f"run-{self.made}"
        node = self.network.add_task(
            resolv_conf=self.database.resolv_conf, tmpfs={run_folder: self.options.run_folder_megabytes * MEGABYTE}
        )
        clock, program = None, self.pgbouncer
        if self.clock_library:
            clock = ShiftedClock(self.clock_library, self.folder / f"clock-{self.made}")
            program = clock.pgbouncer_program(self.pgbouncer)
        client_port, health_port = self._ports_of_all()
        proxy = LocalProxy(
            DatabaseAccess("", 0, self.database.name, self.database.role, self.database.password),
            self.options.budget,
            client_port,
            {
                **self._settings(node),
                "health_port": str(health_port),
                "run_folder": str(run_folder),
                **self.options.settings,
                **settings,
            },
            program,
            launcher=node.command,
            environment={**(self.aws.environment() if self.aws else {}), **(clock.environment() if clock else {})},
        )
        return LabTask(node, proxy, run_folder, clock)

    def _ports_of_all(self) -> tuple[int, int]:
        """Return the client port and the health port, which are every task's."""
        if self._ports is None:
            is_loopback = self.network.kind == "loopback"
            self._ports = (free_port(), free_port()) if is_loopback else (CLIENT_PORT, HEALTH_PORT)
        return self._ports

    def _settings(self, node: Node) -> dict[str, str]:
        login = {"client_password": self.client_password}
        if self.aws:
            login = dict.fromkeys(FROM_SECRETS, "") | self.aws.proxy_settings()
        return {
            **self.database.proxy_settings(node),
            **login,
            **DRAIN_SETTINGS,
            "listen_host": node.address,
            "advertised_host": node.address,
            "client_tls_host_names": f"{self.functions_reach},{node.address}",
            "most_tasks_alive": str(self.options.most_tasks),
            "floor_connections": str(self.options.floor),
            "budget_name": BUDGET_NAME,
            "query_wait_seconds": str(self.options.query_wait_seconds),
            "balancer_notice_seconds": str(2 * self.options.notice_seconds),
            "fleet_name": FLEET_NAME if self.database.names else "",
        }
