"""The self-signed certificate that a proxy makes for itself when it is given none.

P-256, since the TLS handshake is what a storm of logins costs (measured: 725-860 us of CPU against 1,000-1,190
with RSA-2048). Clients that have this file can verify it (`verify-full`); others get encryption only.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID_FOR = timedelta(days=397)  # the longest that common clients accept of a server certificate
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both PEM. The key never appears in the repr."""

    certificate_pem: bytes
    key_pem: bytes

    @property
    def ca_pem(self) -> bytes:
        """What clients verify it by: itself."""
        return self.certificate_pem

    def __repr__(self) -> str:
        return f"Certificate({len(self.certificate_pem)} bytes, key not shown)"


def self_signed(host_names: tuple[str, ...] = ()) -> Certificate:
    """Make a self-signed P-256 certificate for this host, localhost and `host_names`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emberpool proxy")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName(name) for name in dict.fromkeys((*host_names, socket.gethostname(), "localhost"))
    ]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
