"""pgpool-II of the system's package, as its documentation wants it for pooling alone, on loopback.

Its sample configuration is kept, but for what pooling with TLS and SCRAM needs and for what costs without a second
database: it serves one, so it need not look into statements where they should go. Each client has a process of its own,
and each process a server connection of its own: it cannot serve more clients than it has of those.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.proxy.clients import Target
from benchmarks.proxy.contenders import Contender
from benchmarks.proxy.secured_database import SecuredDatabase, write_for_servers
from benchmarks.proxy.unpacked_package import UnpackedPackage, unpacked_package

from emberpool_local.host.children import start_child
from emberpool_local.host.ports import LOOPBACK, free_port, is_free
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until

NAME = "pgpool-II"
PACKAGE = "pgpool2"
START_SECONDS = 20.0
HBA = "local all all reject\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


def find_pgpool(progress: Callable[[str], None]) -> UnpackedPackage:
    """Return the package, fetched at the first use. Raises SystemPackagesMissing."""
    return unpacked_package(PACKAGE, "compare with pgpool-II", progress)


@contextmanager
def running_pgpool(package: UnpackedPackage, database: SecuredDatabase, most_clients: int) -> Iterator[Contender]:
    """Run it for so many clients at once."""
    access, user = database.access, server_user()
    with TempFolder("pgpool") as temporary:
        folder = temporary / "run"
        folder.mkdir(mode=0o700)
        give_to(user, folder)
        port = free_port()
        certificate, key = database.authority.issue((), database.authority.not_before)
        lines = _settings(database, folder, port, most_clients)
        sample = package.find("usr/share/pgpool2/pgpool.conf").read_text()
        for name, text in {
            "pgpool.conf": sample + "".join(f"{name} = '{value}'\n" for name, value in lines.items()),
            "pool_hba.conf": HBA,
            "pool_passwd": f"{access.user}:TEXT{access.password}\n",
            "pcp.conf": "",
            "server.crt": certificate,
            "server.key": key,
        }.items():
            write_for_servers(folder / name, text)
        command: list[str | Path] = [
            package.find("usr/sbin/pgpool"),
            "-n",
            *("-f", folder / "pgpool.conf", "-a", folder / "pool_hba.conf", "-F", folder / "pcp.conf"),
        ]
        child = start_child(
            command,
            log_path=temporary / "pgpool.log",
            environment={**os.environ, **package.environment()},
            working_folder=folder,
            as_user=user,
        )
        try:
            wait_until("pgpool-II did not start", lambda: not child.is_running or not is_free(port), START_SECONDS)
            if not child.is_running:
                raise RuntimeError(f"pgpool-II ended while it started:\n{child.last_log_lines()}")
            target = Target(LOOPBACK, port, access.user, access.name, access.password)
            yield Contender(NAME, target, child.pid)
        finally:
            child.stop(signal.SIGINT)


def _settings(database: SecuredDatabase, folder: Path, port: int, most_clients: int) -> dict[str, str]:
    access = database.access
    return {
        "backend_clustering_mode": "raw",
        "backend_hostname0": access.host,
        "backend_port0": str(access.port),
        "backend_weight0": "1",
        "backend_flag0": "DISALLOW_TO_FAILOVER",
        "load_balance_mode": "off",
        "check_temp_table": "none",
        "check_unlogged_table": "off",
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "pcp_port": str(free_port()),
        "socket_dir": str(folder),
        "pcp_socket_dir": str(folder),
        "pid_file_name": str(folder / "pgpool.pid"),
        "logdir": str(folder),
        "enable_pool_hba": "on",
        "pool_passwd": str(folder / "pool_passwd"),
        "ssl": "on",
        "ssl_cert": str(folder / "server.crt"),
        "ssl_key": str(folder / "server.key"),
        "num_init_children": str(most_clients),
        "max_pool": "1",
        # What it keeps for clients that are gone would be idle backends while the others are measured.
        "connection_cache": "off",
        # A login would wake up all of its processes; its documentation wants this for many of them.
        "serialize_accept": "on",
        "child_life_time": "0",
    }
