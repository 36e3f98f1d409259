"""The lab's balancer: what a Network Load Balancer does to connections, with real ones."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.balancer import Balancer, Target
from emberpool_local.lab.network import open_network
from emberpool_local.lab.socket_filter import may_lose_packets

from .echo import EchoServer, echo_server

NOTICE_SECONDS = 0.2
FIRST, SECOND = "127.0.0.21", "127.0.0.22"


@pytest.fixture
def first() -> Iterator[EchoServer]:
    """A target."""
    with echo_server(FIRST) as server:
        yield server


@pytest.fixture
def second() -> Iterator[EchoServer]:
    """Another one."""
    with echo_server(SECOND) as server:
        yield server


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    """A balancer without targets; a target is healthy while it takes connections."""
    with Balancer(notice_seconds=NOTICE_SECONDS, health="tcp") as running:
        yield running


def target_of(server: EchoServer) -> Target:
    return server.listener.getsockname()[0], server.port, server.port


def connected(balancer: Balancer) -> socket.socket:
    connection = socket.create_connection((balancer.address, balancer.port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def echoed(connection: socket.socket) -> bytes:
    connection.sendall(b"hello")
    return connection.recv(10)


def host_reached(balancer: Balancer) -> str:
    """Return which target a new connection is led to."""
    before = dict(balancer.connections())
    with connected(balancer) as connection:
        assert echoed(connection) == b"hello"
        after = balancer.connections()
    wait_until("the connection stays", lambda: sum(balancer.connections().values()) == sum(before.values()))
    return next(host for host, count in after.items() if count > before.get(host, 0))


def test_new_connections_go_to_the_targets_in_turn(balancer: Balancer, first: EchoServer, second: EchoServer) -> None:
    """Two targets get every second connection each."""
    balancer.add(target_of(first))
    balancer.add(target_of(second))
    connections = [connected(balancer) for _ in range(6)]
    assert [echoed(connection) for connection in connections] == [b"hello"] * 6
    assert balancer.connections() == {FIRST: 3, SECOND: 3}
    for connection in connections:
        connection.close()


def test_without_a_target_connections_are_reset(balancer: Balancer, first: EchoServer) -> None:
    """A balancer that has no target, or whose target has ended, resets who connects."""
    with pytest.raises(ConnectionResetError), connected(balancer) as connection:
        connection.recv(10)
    balancer.add(target_of(first))
    first.close()
    with pytest.raises(ConnectionResetError), connected(balancer) as connection:
        connection.recv(10)


def test_ended_target_gets_no_connections_once_it_is_noticed(
    balancer: Balancer, first: EchoServer, second: EchoServer
) -> None:
    """An unhealthy target is left out after a while, and used again when it is healthy again."""
    target = target_of(first)
    balancer.add(target)
    balancer.add(target_of(second))
    first.close()
    wait_until("the target is still healthy", lambda: not balancer.is_healthy(target))
    assert {host_reached(balancer) for _ in range(4)} == {SECOND}
    with socket.create_server(target[:2]):
        wait_until("the target did not become healthy again", lambda: balancer.is_healthy(target))


def test_removed_target_keeps_its_connections(balancer: Balancer, first: EchoServer, second: EchoServer) -> None:
    """What is connected to a target that is taken out goes on; new connections go elsewhere once it is noticed."""
    balancer.add(target_of(first))
    with connected(balancer) as connection:
        assert echoed(connection) == b"hello"
        balancer.add(target_of(second))
        balancer.remove(target_of(first))
        wait_until("the target is still used", lambda: not balancer.is_healthy(target_of(first)))
        assert {host_reached(balancer) for _ in range(4)} == {SECOND}
        assert echoed(connection) == b"hello"
    balancer.add(target_of(first))
    assert {host_reached(balancer) for _ in range(4)} == {FIRST, SECOND}


def test_deregistration_delay_ends_the_connections_that_are_left(first: EchoServer) -> None:
    """With a delay set, connections of a target that was taken out are reset when it is over."""
    with Balancer(notice_seconds=NOTICE_SECONDS, health="tcp", deregistration_seconds=0.1) as balancer:
        balancer.add(target_of(first))
        with connected(balancer) as connection:
            assert echoed(connection) == b"hello"
            balancer.remove(target_of(first))
            with pytest.raises(ConnectionResetError):
                connection.recv(10)
        first.wait_for_end(LOOPBACK, "ConnectionResetError")


def test_idle_connection_is_forgotten_and_reset_at_its_next_packet(first: EchoServer) -> None:
    """Nobody is told of the timeout: the client's next packet is answered with a reset, the target hears nothing."""
    with Balancer(notice_seconds=NOTICE_SECONDS, health="tcp", idle_seconds=0.1) as balancer:
        balancer.add(target_of(first))
        with connected(balancer) as connection:
            assert echoed(connection) == b"hello"
            wait_until("the connection is not forgotten", lambda: not balancer.connections())
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(10)
            connection.settimeout(10)
            with pytest.raises(ConnectionResetError):
                echoed(connection)
        assert (LOOPBACK, "ConnectionResetError") not in first.ends


@pytest.mark.parametrize("is_on_network", [False, True])
def test_silently_forgotten_connection_is_not_answered_by_tcp(is_on_network: bool) -> None:
    """What a client sends is not acknowledged any more where the kernel permits that, and nowhere answered."""
    with open_network("loopback") as network:
        home = network.node("primary").address if is_on_network else LOOPBACK
        with (
            echo_server(home) as server,
            Balancer(network if is_on_network else None, notice_seconds=NOTICE_SECONDS, health="tcp") as balancer,
        ):
            balancer.add(target_of(server))
            with connected(balancer) as connection, connected(balancer) as busy:
                assert echoed(connection) == b"hello"
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
                assert echoed(busy) == b"hello"
                assert balancer.forget_idle(60.0, silently=True) == 0
                assert balancer.forget_idle(silently=True) == 2
                by_tcp = may_lose_packets()
                connection.settimeout(20 if by_tcp else 0.5)
                with pytest.raises(TimeoutError, match="Connection timed out" if by_tcp else "timed out"):
                    echoed(connection)
            with connected(balancer) as connection:
                assert echoed(connection) == b"hello"


def test_connections_come_from_the_node_of_the_balancer() -> None:
    """In a network targets see the balancer's address, not that of the client."""
    with open_network("loopback") as network:
        home = network.node("primary").address
        with echo_server(home) as server, Balancer(network, health="tcp") as balancer:
            balancer.add(target_of(server))
            with connected(balancer) as connection:
                assert echoed(connection) == b"hello"
            assert set(server.clients) == {network.node("balancer").address}


@pytest.mark.parametrize(("linger", "end"), [(1, "ConnectionResetError"), (0, "closed")])
def test_end_of_a_client_reaches_the_target(first: EchoServer, linger: int, end: str) -> None:
    """A client that resets its connection resets that to the target; one that closes it closes it."""
    with open_network("loopback") as network, Balancer(network, health="tcp") as balancer:
        balancer.add(target_of(first))
        first.ends.clear()
        connection = connected(balancer)
        assert echoed(connection) == b"hello"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger, 0))
        connection.close()
        first.wait_for_end(network.node("balancer").address, end)
