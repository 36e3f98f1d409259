"""Certificates and keys in PEM: read, matched with each other, and what is wrong with them said in one sentence.

Owns no file and no secret: `origin` is the words that name where a text came from. No message shows a key.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from emberpool_proxy.errors import CertificateUnusable


@dataclass(frozen=True)
class CertificateFiles:
    """What PgBouncer serves to clients, all PEM.

    `certificate_pem` begins with the server's own certificate, its chain follows. `ca_pem` is what clients verify it
    by, empty when that is not known here (a public authority, for example). The key never appears in the repr.
    """

    certificate_pem: str
    key_pem: str = field(repr=False)
    ca_pem: str
    expires_at: datetime


def read_files(certificate_pem: str, key_pem: str, ca_pem: str, now: datetime, origin: str) -> CertificateFiles:
    """Check a certificate and its key as PgBouncer will use them, at the time `now`.

    Without `ca_pem` a self-signed certificate of the chain takes its place. Raises CertificateUnusable.
    """
    chain = read_certificates(certificate_pem, origin)
    _check_key(chain, _read_key(key_pem, origin), origin)
    check_validity(chain[0], now, origin)
    _check_openssl_accepts(certificate_pem, key_pem, origin)
    authorities = read_certificates(ca_pem, f"the CA of {origin}") if ca_pem else _self_signed(chain)
    return CertificateFiles(
        certificate_pem="".join(to_pem(each) for each in chain),
        key_pem=key_pem,
        ca_pem="".join(to_pem(each) for each in authorities),
        expires_at=min(each.not_valid_after_utc for each in chain),
    )


def read_certificates(pem: str, origin: str) -> list[x509.Certificate]:
    """Return the certificates in `pem`, at least one. Raises CertificateUnusable."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        found = "a private key" if "PRIVATE KEY-----" in pem else f"{len(pem.strip())} characters of something else"
        raise CertificateUnusable(
            f"{origin} must begin with a certificate in PEM (-----BEGIN CERTIFICATE-----), got {found}"
        ) from None


def check_validity(certificate: x509.Certificate, now: datetime, origin: str) -> None:
    """Raise CertificateUnusable when the certificate has expired at `now` or is not valid yet."""
    if certificate.not_valid_after_utc <= now:
        raise CertificateUnusable(
            f"{origin} expired at {_shown(certificate.not_valid_after_utc)}; put a renewed certificate there"
        )
    if certificate.not_valid_before_utc > now:
        raise CertificateUnusable(
            f"{origin} is not valid before {_shown(certificate.not_valid_before_utc)}, and it is {_shown(now)} here; "
            "wait, or mend the clock"
        )


def covers(certificate_pem: str, host_name: str) -> bool:
    """Say whether the first certificate's alternative names have `host_name`, a wildcard for its first label."""
    certificate = x509.load_pem_x509_certificates(certificate_pem.encode())[0]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    names = {name.lower() for name in extension.value.get_values_for_type(x509.DNSName)}
    names |= {str(address) for address in extension.value.get_values_for_type(x509.IPAddress)}
    wanted = host_name.lower()
    return wanted in names or f"*.{wanted.partition('.')[2]}" in names


def to_pem(certificate: x509.Certificate) -> str:
    """Return one certificate as PEM, without the text that some tools put between certificates."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _read_key(pem: str, origin: str) -> PrivateKeyTypes:
    # Raised outside of the except blocks: cryptography's errors may quote what they read.
    problem = "is not a private key in PEM (-----BEGIN PRIVATE KEY-----)"
    try:
        return serialization.load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        problem = "is encrypted: give it without a passphrase, PgBouncer cannot ask for one"
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise CertificateUnusable(f"the private key of {origin} {problem}")


def _check_key(chain: list[x509.Certificate], key: PrivateKeyTypes, origin: str) -> None:
    public = _public_bytes(key.public_key())
    fitting = [index for index, each in enumerate(chain) if _public_bytes(each.public_key()) == public]
    if not fitting:
        raise CertificateUnusable(f"the private key of {origin} belongs to another certificate; give the pair")
    if fitting[0] != 0:
        raise CertificateUnusable(
            f"{origin}: the private key belongs to certificate {fitting[0] + 1} of {len(chain)}; put the server's own "
            "certificate first, the chain after it"
        )


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _check_openssl_accepts(certificate_pem: str, key_pem: str, origin: str) -> None:
    """Load the pair as PgBouncer does: the system's OpenSSL has rules of its own, on short RSA keys for example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("certificate")  # load_cert_chain() wants a file; this one is never on a disk
    try:
        os.write(descriptor, f"{certificate_pem.strip()}\n{key_pem}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise CertificateUnusable(
            f"OpenSSL refuses {origin}: {error.reason or 'no reason given'}; a P-256 key is accepted everywhere"
        ) from None
    finally:
        os.close(descriptor)


def _self_signed(chain: list[x509.Certificate]) -> list[x509.Certificate]:
    return [each for each in chain if each.subject == each.issuer]


def _shown(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
