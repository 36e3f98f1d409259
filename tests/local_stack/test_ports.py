"""Free ports for servers."""

from __future__ import annotations

import socket

from emberpool_local.host.ports import EPHEMERAL_RANGE, LOOPBACK, free_port, is_free


def test_free_port_is_one_that_no_outgoing_connection_gets() -> None:
    """A server that restarts on its port does not lose it to a client's outgoing connection."""
    first_ephemeral = int(EPHEMERAL_RANGE.read_text().split()[0])
    ports = [free_port() for _ in range(20)]
    assert max(ports) < first_ephemeral
    assert len(set(ports)) > 1


def test_port_with_a_listener_is_not_free() -> None:
    """A port is taken while somebody listens on it, and free again afterwards."""
    port = free_port()
    with socket.socket() as server:
        server.bind((LOOPBACK, port))
        server.listen()
        assert not is_free(port)
    assert is_free(port)
