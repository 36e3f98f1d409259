"""The private CA of a deployment: how one is made, and how it signs the certificate that clients see.

P-256 throughout, since the TLS handshake is what a storm of logins costs (measured: 725-860 us of CPU against
1,000-1,190 with RSA-2048).
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from emberpool_proxy.errors import CertificateUnusable
from emberpool_proxy.tls.pem import read_certificates, to_pem

AUTHORITY_VALID_FOR = timedelta(days=3650)
LEAF_VALID_FOR = timedelta(days=90)
CLOCK_SKEW = timedelta(minutes=5)  # of a client whose clock is behind
LOCAL_ADDRESSES = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Authority:
    """One generation of the private CA. The key never appears in the repr."""

    certificate_pem: str
    key_pem: str = field(repr=False)
    not_before: datetime
    not_after: datetime

    @classmethod
    def make(cls, now: datetime) -> Authority:
        """Make a new one, valid from `now` for AUTHORITY_VALID_FOR."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # Named by its serial number, so that a client which trusts two generations never confuses them.
        name = _name(f"emberpool CA {serial:x}"[:64])
        certificate = (
            _builder(name, name, key.public_key(), now, now + AUTHORITY_VALID_FOR, serial)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls.of(to_pem(certificate), _key_pem(key), "the CA that was just made")

    @classmethod
    def of(cls, certificate_pem: str, key_pem: str, origin: str) -> Authority:
        """Read one. Raises CertificateUnusable when it is no CA, or its key is another's; validity is not looked at."""
        certificate, *others = read_certificates(certificate_pem, origin)
        if others:
            raise CertificateUnusable(f"{origin} has {len(others) + 1} certificates where one belongs")
        authority = cls(certificate_pem, key_pem, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        if authority._signing_key(origin).public_key() != certificate.public_key():
            raise CertificateUnusable(f"the private key of {origin} belongs to another certificate; give the pair")
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            constraints = None
        if constraints is None or not constraints.ca:
            raise CertificateUnusable(f"{origin} is no certificate authority (its basic constraints do not say CA)")
        return authority

    def issue(self, host_names: tuple[str, ...], now: datetime) -> tuple[str, str]:
        """Return certificate and key (PEM) of a server with these names, this host's and localhost's.

        Valid for LEAF_VALID_FOR, but never longer than the authority itself.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.load_pem_x509_certificate(self.certificate_pem.encode())
        own_key = self._signing_key("the CA")
        until = min(now + LEAF_VALID_FOR, self.not_after)
        certificate = (
            _builder(_name("emberpool proxy"), own.subject, key.public_key(), now, until, x509.random_serial_number())
            .add_extension(x509.SubjectAlternativeName(_alternative_names(host_names)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own_key.public_key()), critical=False)
            .sign(own_key, hashes.SHA256())
        )
        return to_pem(certificate), _key_pem(key)

    def _signing_key(self, origin: str) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self.key_pem.encode(), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateUnusable(f"the private key of {origin} is not an elliptic curve key in PEM")
        return key


def utc_now() -> datetime:
    """Return the time; tests give another clock."""
    return datetime.now(UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )


def _alternative_names(host_names: tuple[str, ...]) -> list[x509.GeneralName]:
    given = (*host_names, socket.gethostname(), "localhost", *LOCAL_ADDRESSES)
    # Certificates hold ASCII names only; a machine may be called anything.
    return [_general_name(name) for name in dict.fromkeys(name.lower() for name in given if name and name.isascii())]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
