"""The parts of the whole path: a database with TLS, one task of the proxy, and a network between them that delays.

The network is the failure lab's, without a namespace for the task: all ways are the kernel's own while nothing is
delayed, and all pass the lab's router while something is. Every way is delayed alike, from the functions to the
database, from the functions to the task and from the task to the database: emberpool pays for its second hop.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from benchmarks.proxy.secured_database import write_for_servers
from benchmarks.whole_path.functions.work import SCHEMA

from emberpool import settings as layer
from emberpool_local.host.ports import free_port
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.lab.network import LabNetwork, NetworkKind, Node, open_network
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.program import PostgresProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_proxy.tls.authority import Authority, utc_now

NAIVE, WARM, EMBERPOOL = "naive", "warm only", "emberpool"
CODE_FOLDER = Path(__file__).parents[2]  # where `benchmarks` is
FUNCTIONS = "benchmarks.whole_path.functions"
DATABASE, ROLE, PASSWORD = "shop", "shop", "password-of-the-shop"
SPARE_CONNECTIONS = 20


@dataclass(frozen=True)
class Way:
    """One way to connect: a handler, and its variables."""

    name: str
    handler: str
    variables: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class WholePath:
    """The running parts."""

    network: LabNetwork
    ways: tuple[Way, ...]

    @contextmanager
    def delayed(self, round_trip_ms: float) -> Iterator[None]:
        """Let every round trip between two of the three take so much longer."""
        functions, task, primary = (self.network.node(name) for name in ("functions", "task", "primary"))
        one_way = round_trip_ms / 2000
        with ExitStack() as stack:
            # Where the three share a namespace, what the task sends to the database comes from "functions", too.
            for a, b in ((functions, primary), (functions, task), (task, primary)):
                if one_way:
                    stack.enter_context(self.network.impair(a, b, delay_seconds=one_way))
            yield

    def round_trips_ms(self, tries: int = 30) -> list[float]:
        """Measure round trips from the functions to where the database is."""
        primary = self.network.node("primary")
        with socket.create_server((primary.address, 0)) as echo:
            threading.Thread(target=_echo_once, args=(echo,), daemon=True).start()
            way = self.network.way(self.network.node("functions"), primary, echo.getsockname()[1])
            with socket.create_connection(way) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return [_round_trip_ms(client) for _ in range(tries + 1)][1:]


@contextmanager
def running_path(
    postgres: PostgresProgram, pgbouncer: PgbouncerProgram, environments: int, kind: NetworkKind | None
) -> Iterator[WholePath]:
    """Run all parts, for so many environments. Moves this thread into a network of its own where that can be had."""
    with open_network(kind, print) as network, TempFolder("bench") as folder, ExitStack() as stack:
        functions, task, primary = (network.node(name) for name in ("functions", "task", "primary"))
        authority = Authority.make(utc_now())
        authority_path = write_for_servers(folder / "ca.crt", authority.certificate_pem, 0o644)
        port = free_port()
        ways = {network.way(node, primary, port) for node in (functions, task)}
        names = {primary.address, *(host for host, _ in ways)}
        database = stack.enter_context(_database(postgres, primary, port, authority, names, folder, environments))
        access_host, access_port = network.way(task, primary, port)
        proxy_port, health_port = free_port(), free_port()
        reached = network.way(functions, task, proxy_port)
        settings = {
            "listen_host": task.address,
            "health_port": str(health_port),
            "client_tls_host_names": f"{task.address},{reached[0]}",
            "server_tls_mode": "verify-full",
            "server_tls_ca_file": str(authority_path),
        }
        access = DatabaseAccess(access_host, access_port, DATABASE, ROLE, PASSWORD)
        proxy = LocalProxy(access, environments, proxy_port, settings, pgbouncer)
        stack.enter_context(proxy)
        direct = network.way(functions, primary, port)
        with psycopg.connect(database.conninfo(ROLE, PASSWORD, DATABASE, by_socket=True)) as connection:
            connection.execute(SCHEMA)
        yield WholePath(network, _ways(direct, authority_path, proxy, reached))


@contextmanager
def _database(
    program: PostgresProgram,
    node: Node,
    port: int,
    authority: Authority,
    names: set[str],
    folder: Path,
    environments: int,
) -> Iterator[EmbeddedPostgres]:
    certificate, key = authority.issue(tuple(sorted(names)), utc_now())
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(write_for_servers(folder / "server.crt", certificate)),
        "ssl_key_file": str(write_for_servers(folder / "server.key", key)),
        "log_connections": "off",
    }
    rules = ("host all postgres all scram-sha-256", "hostssl all all all scram-sha-256")
    # All three ways have all their connections at once.
    most = 3 * environments + SPARE_CONNECTIONS
    with EmbeddedPostgres(most, port, settings, program, node.address, rules) as postgres:
        postgres.create_role_and_database(ROLE, PASSWORD, DATABASE)
        yield postgres


def _ways(direct: tuple[str, int], authority: Path, proxy: LocalProxy, reached: tuple[str, int]) -> tuple[Way, ...]:
    host, port = direct
    url = f"host={host} port={port} user={ROLE} password={PASSWORD} dbname={DATABASE}"
    common = {layer.DATABASE: DATABASE, layer.SSLMODE: "verify-full", layer.METRICS: "off"}
    straight = {
        **common,
        layer.HOST: host,
        layer.PORT: str(port),
        layer.USER: ROLE,
        layer.PASSWORD: PASSWORD,
        layer.SSLROOTCERT: str(authority),
    }
    pooled = {
        **common,
        layer.HOST: reached[0],
        layer.PORT: str(reached[1]),
        layer.USER: proxy.client_user,
        layer.PASSWORD: proxy.client_password,
        layer.SSLROOTCERT: str(proxy.certificate_path),
    }
    return (
        Way(
            NAIVE, f"{FUNCTIONS}.naive:handler", {"DATABASE_URL": f"{url} sslmode=verify-full sslrootcert={authority}"}
        ),
        Way(WARM, f"{FUNCTIONS}.warm:handler", straight),
        Way(EMBERPOOL, f"{FUNCTIONS}.warm:handler", pooled),
    )


def _round_trip_ms(client: socket.socket) -> float:
    began = time.perf_counter()
    client.sendall(b"x")
    client.recv(1)
    return (time.perf_counter() - began) * 1000


def _echo_once(server: socket.socket) -> None:
    accepted, _ = server.accept()
    with accepted:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := accepted.recv(64):
            accepted.sendall(data)
