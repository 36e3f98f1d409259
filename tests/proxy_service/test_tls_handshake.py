"""What a TLS handshake with the proxy costs the function: bytes on its way."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable

from .conftest import Proxy

SSL_REQUEST = struct.pack("!II", 8, 80877103)
MOST_BYTES = 4_096  # the certificate and the rest; the names of all the system's CAs were 15 kB


def bytes_of_a_handshake(proxy: Proxy) -> int:
    """Return how many bytes the proxy sends until the handshake is done."""
    context = ssl.create_default_context(cafile=f"{proxy.setting('run_folder')}/ca.crt")
    received, to_send, count = ssl.MemoryBIO(), ssl.MemoryBIO(), 0
    tls = context.wrap_bio(received, to_send, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", int(proxy.setting("client_port"))), timeout=10) as connection:
        connection.sendall(SSL_REQUEST)
        assert connection.recv(1) == b"S"
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                connection.sendall(to_send.read())
                count += received.write(connection.recv(65_536))
            else:
                connection.sendall(to_send.read())
                return count


def test_handshake_does_not_name_the_systems_authorities(make_proxy: Callable[..., Proxy]) -> None:
    """The proxy asks for no certificate of any CA that the machine trusts: functions log in with a password."""
    proxy = make_proxy().start_ready()
    assert bytes_of_a_handshake(proxy) < MOST_BYTES
