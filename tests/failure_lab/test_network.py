"""The lab's network, both kinds: what real TCP makes of silence, delay and loss."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from emberpool_local.errors import NetworkUnavailable
from emberpool_local.lab.network import LabNetwork, Node, open_network
from emberpool_local.lab.packet_network import why_no_namespaces
from emberpool_local.lab.relay_network import RelayNetwork

from .echo import Client, EchoServer, echo_server

USER_TIMEOUT_MS = 300
# Longer than the whole test: who waits for so long was not answered.
LONG_SECONDS = 20.0


@pytest.fixture(scope="module", params=["namespaces", "loopback", "loopback without privileges"])
def network(request: pytest.FixtureRequest) -> Iterator[LabNetwork]:
    """Each kind once; the namespaces where this machine gives them."""
    if request.param == "namespaces" and (reason := why_no_namespaces()):
        pytest.skip(reason)
    unprivileged = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    is_privileged = request.param != "loopback without privileges"
    with open_network(request.param) if is_privileged else RelayNetwork("a test", unprivileged) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(network: LabNetwork) -> Iterator[EchoServer]:
    """A server at the node "primary"."""
    with echo_server(network.node("primary").address) as running:
        yield running


@pytest.fixture
def task(network: LabNetwork) -> Node:
    """A task of the test's own."""
    return network.add_task()


@pytest.fixture
def functions(network: LabNetwork) -> Node:
    """The functions' node, which shares its namespace with the server's."""
    return network.node("functions")


@pytest.fixture
def client(network: LabNetwork, server: EchoServer, task: Node) -> Iterator[Client]:
    """A client in that task, connected to the server."""
    with Client(task) as running:
        assert running.connect(way_to_server(network, server, task)) == "connected"
        assert running.tell("echo", 10) == 10
        yield running


def expect_silence(network: LabNetwork, client: Client) -> None:
    """Let the client wait shortly from now on; where TCP itself learns of silence, so long that it does so first."""
    client.limit(LONG_SECONDS if network.loses_packets else 0.5, USER_TIMEOUT_MS)


def is_unanswered(network: LabNetwork, client: Client, way: tuple[str, int]) -> bool:
    """Whether a new connection gets no answer; what holds bytes leaves the kernel to connect."""
    result = client.connect(way, 0.3)
    if result == "connected" and not network.loses_packets:
        result = client.tell("echo", 10)
    return result == "TimeoutError"


def way_to_server(network: LabNetwork, server: EchoServer, node: Node) -> tuple[str, int]:
    return network.way(node, network.node("primary"), server.port)


def test_servers_see_the_address_of_the_node(
    network: LabNetwork, server: EchoServer, client: Client, task: Node
) -> None:
    """A connection from a task comes from the task's address, one that binds nothing from that of the functions."""
    assert server.clients[-1] == task.address
    functions = network.node("functions")
    with Client(functions) as other:
        assert other.connect(way_to_server(network, server, functions)) == "connected"
        assert other.tell("echo", 10) == 10
    assert server.clients[-1] == functions.address != task.address


def test_nodes_have_their_names_and_ways_stay(network: LabNetwork, task: Node) -> None:
    """A node is the same at every look, and so is a way; nodes differ in their addresses."""
    names = ["functions", "balancer", "primary", "standby", "aws"]
    nodes = [network.node(name) for name in names]
    assert nodes == [network.node(name) for name in names]
    assert len({node.address for node in (*nodes, task)}) == len(names) + 1
    assert network.way(task, nodes[2], 5432) == network.way(task, nodes[2], 5432)


def test_silent_way_is_silent_for_tcp(network: LabNetwork, server: EchoServer, client: Client, task: Node) -> None:
    """On a silent way the kernel's own timeout ends a connection, a new one gets no answer, and others go on."""
    way = way_to_server(network, server, task)
    with Client(task) as second, Client(network.node("functions")) as elsewhere:
        with network.silence(task, network.node("primary")):
            expect_silence(network, client)
            client.begin("echo", 10)
            assert elsewhere.connect(way_to_server(network, server, network.node("functions"))) == "connected"
            assert elsewhere.tell("echo", 10) == 10
            assert client.result() == "TimeoutError"
            assert client.seconds < LONG_SECONDS
            assert is_unanswered(network, second, way)
        assert second.connect(way) == "connected"


def test_what_was_sent_in_silence_arrives_after_it(network: LabNetwork, client: Client, task: Node) -> None:
    """A silence that is shorter than everybody's timeout costs nothing but time: TCP sends again."""
    with ExitStack() as silences:
        silences.enter_context(network.silence(task))  # from everybody
        with network.silence(task, network.node("primary")):
            client.begin("echo", 100)
        threading.Timer(0.3, silences.pop_all().close).start()
        assert client.result() == 100
        assert client.seconds > 0.2


def test_delay_is_added_to_every_round_trip(network: LabNetwork, client: Client, task: Node) -> None:
    """A round trip takes at least twice each delay that holds; afterwards it does not any more."""
    primary = network.node("primary")
    with network.impair(task, delay_seconds=0.02), network.impair(task, primary, delay_seconds=0.03):
        for _ in range(3):
            assert client.tell("echo", 10) == 10
            assert client.seconds >= 2 * (0.02 + 0.03)
    seconds = []
    while not seconds or min(seconds) > 0.05:
        client.tell("echo", 10)
        seconds.append(client.seconds)
        assert len(seconds) < 50, seconds


def test_nodes_that_share_a_namespace_are_impaired_too(
    network: LabNetwork, server: EchoServer, functions: Node
) -> None:
    """Delay, silence and forgetting reach a connection between two of them that exists already, and end again."""
    primary = network.node("primary")
    way = way_to_server(network, server, functions)
    with Client(functions) as client:
        assert client.connect(way) == "connected"
        assert client.tell("echo", 1_000_000) == 1_000_000
        with network.impair(functions, primary, delay_seconds=0.03):
            assert client.tell("echo", 10) == 10
            assert client.seconds >= 2 * 0.03
            assert client.tell("echo", 1_000_000) == 1_000_000
        assert client.tell("echo", 1_000_000) == 1_000_000
        with network.silence(functions, primary):
            expect_silence(network, client)
            assert client.tell("echo", 10) == "TimeoutError"
        assert client.connect(way) == "connected"
        assert client.tell("echo", 10) == 10
        network.forget(functions, primary)
        expect_silence(network, client)
        assert client.tell("echo", 10) == "TimeoutError"
        assert client.connect(way) == "connected"
        assert client.tell("echo", 10) == 10


def test_delayed_connections_end_after_their_last_byte(
    network: LabNetwork, server: EchoServer, client: Client, task: Node
) -> None:
    """With delays that vary every byte arrives, and the end of a connection after them."""
    with network.impair(task, network.node("primary"), delay_seconds=0.001, jitter_seconds=0.003):
        assert client.tell("echo", 1_000_000) == 1_000_000
        client.process.kill()
        server.wait_for_end(task.address, "closed")


def test_rules_that_come_and_go_keep_the_bytes_in_order(network: LabNetwork, client: Client, task: Node) -> None:
    """What is sent while a delay begins or ends arrives after what is still under way."""
    client.begin("echo", 4_000_000)
    for _ in range(40):
        with network.impair(task, network.node("primary"), delay_seconds=0.002):
            time.sleep(0.001)
    assert client.result() == 4_000_000


def test_lost_packets_are_sent_again(network: LabNetwork, client: Client, task: Node) -> None:
    """On a way that loses packets all bytes arrive, by retransmissions that the kernel counts or that take time."""
    retransmission_seconds = 0.15
    with network.impair(task, network.node("primary"), loss=0.2):
        while not client.tell("retransmissions"):
            assert client.tell("echo", 50_000) == 50_000
            if not network.loses_packets and client.seconds > retransmission_seconds:
                break


def test_forgotten_connections_are_silent_and_new_ones_work(
    network: LabNetwork, server: EchoServer, client: Client, task: Node
) -> None:
    """What is connected loses everything from now on, and a new connection between the same two works."""
    way = way_to_server(network, server, task)
    network.forget(task, network.node("primary"))
    expect_silence(network, client)
    assert client.tell("echo", 10) == "TimeoutError"
    assert client.connect(way) == "connected"
    assert client.tell("echo", 10) == 10


def test_vanished_task_says_nothing(network: LabNetwork, server: EchoServer, client: Client, task: Node) -> None:
    """Who is connected to a task that vanishes gets no word of its end; who connects later no answer."""
    with network.silence(task):
        client.process.kill()
        client.process.wait()
        network.remove(task)
        with Client(network.node("functions")) as other:
            assert is_unanswered(network, other, network.way(network.node("functions"), task, 6432))
        assert task.address not in dict(server.ends)


def test_task_that_ends_says_so(server: EchoServer, client: Client, task: Node) -> None:
    """Without silence the end of a program at a node ends its connections."""
    client.process.kill()
    server.wait_for_end(task.address, "closed")


def test_command_begins_in_the_folder_that_it_is_started_in(task: Node, tmp_path: Path) -> None:
    """A node's command keeps its folder, its arguments and the process id."""
    command = task.command(["sh", "-c", 'pwd; echo "$1"; echo $$', "sh", "two words"])
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert running.communicate()[0].splitlines() == [str(tmp_path), "two words", str(running.pid)]


def test_impossible_impairments_are_refused(network: LabNetwork, task: Node) -> None:
    """A negative delay or a share of more than all is an error that shows the values."""
    for asked in ({"delay_seconds": -1.0}, {"loss": 1.5}):
        with pytest.raises(ValueError, match="must be between 0 and 1"), network.impair(task, **asked):
            pass


def test_without_root_it_is_loopback_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not have namespaces gets the other kind with a reason, or an error when it was asked for."""
    monkeypatch.setattr("emberpool_local.lab.packet_network.os.geteuid", lambda: 1000)
    told: list[str] = []
    with open_network(progress=told.append) as opened:
        assert (opened.kind, opened.reason) == ("loopback", "Network namespaces need root")
    assert told == ["Network namespaces need root: the lab uses loopback addresses and relays instead"]
    with pytest.raises(NetworkUnavailable, match="need root"), open_network("namespaces"):
        pass
