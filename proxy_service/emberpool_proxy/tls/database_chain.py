"""Which authorities a file holds, and by which of them the database's certificate is verified.

Asks the database for its certificate by a TLS handshake that ends before a login: PostgreSQL counts it neither as a
connection nor as a session, and logs nothing of it but `connection received` where log_connections is on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emberpool_proxy.settings import ProxySettings

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # length and code, as in PostgreSQL's protocol
HANDSHAKE_SECONDS = 3.0  # as long as PgBouncer gives a login


@dataclass(frozen=True)
class Trusted:
    """One authority: its certificate in DER, the parts of its subject, and when it expires (seconds since 1970)."""

    der: bytes
    subject: tuple[tuple[str, str], ...]
    expires_at: float

    @property
    def common_name(self) -> str:
        """The subject's common name, empty without one."""
        return next((value for name, value in self.subject if name == "commonName"), "")


@dataclass(frozen=True)
class Bundle:
    """A file's authorities. `context` verifies a server by them, in the mode of the settings."""

    authorities: tuple[Trusted, ...]
    context: ssl.SSLContext

    @classmethod
    def read(cls, path: Path, settings: ProxySettings) -> Bundle:
        """Read a file as PgBouncer does, which takes 30 ms for 150 authorities. Raises OSError, ssl.SSLError too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = settings.server_tls_mode == "verify-full"
        context.load_verify_locations(cafile=path)
        # Both lists are OpenSSL's, in one order; other libraries refuse some authorities of the system's bundles.
        pairs = zip(context.get_ca_certs(binary_form=True), context.get_ca_certs(), strict=True)
        return cls(tuple(_trusted(der, told) for der, told in pairs), context)

    @property
    def certificates(self) -> frozenset[bytes]:
        """All certificates in DER."""
        return frozenset(each.der for each in self.authorities)


async def verified_chain(settings: ProxySettings, context: ssl.SSLContext, turn: asyncio.Lock) -> tuple[bytes, ...]:
    """Return the chain that verifies the database, its own certificate first, the root last, each in DER.

    Holds `turn` meanwhile, at most HANDSHAKE_SECONDS. It is empty where this Python does not tell the chain. Raises
    ssl.SSLCertVerificationError when `context` does not trust the database, another OSError, TimeoutError or EOFError
    when it does not answer.
    """
    async with asyncio.timeout(HANDSHAKE_SECONDS), turn:
        reader, writer = await asyncio.open_connection(settings.database_host, settings.database_port)
        try:
            writer.write(SSL_REQUEST)
            if await reader.readexactly(1) != b"S":
                raise ConnectionRefusedError("the database has no TLS")
            await writer.start_tls(context, server_hostname=settings.database_host)
            chain = _chain(writer.get_extra_info("ssl_object"))
            # Not by a reset, which PostgreSQL would log.
            writer.close()
            await writer.wait_closed()
        finally:
            writer.transport.abort()
    return chain


def _chain(connection: ssl.SSLObject) -> tuple[bytes, ...]:
    if hasattr(connection, "get_verified_chain"):  # Python 3.13
        return tuple(connection.get_verified_chain())
    tell = getattr(getattr(connection, "_sslobj", None), "get_verified_chain", None)
    if tell is None:
        return ()
    return tuple(ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in tell())


def _trusted(der: bytes, told: Mapping[str, object]) -> Trusted:
    subject = told["subject"]
    assert isinstance(subject, tuple)  # noqa: S101 (typeshed says no more than object)
    return Trusted(
        der, tuple(pair for group in subject for pair in group), ssl.cert_time_to_seconds(str(told["notAfter"]))
    )
