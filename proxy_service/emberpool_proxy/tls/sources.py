"""Where the certificate for clients comes from: files, a secret, or a CA of our own that signs it here.

Each source reads everything anew at each call and says with an error what is wrong; keeping the last good one is
client_certificate's.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509

from emberpool_proxy.errors import CertificateUnusable, ProxyError
from emberpool_proxy.log import logger
from emberpool_proxy.tls.authority import Authority
from emberpool_proxy.tls.generations import Generations, signing, trusted
from emberpool_proxy.tls.pem import CertificateFiles, covers, read_files
from emberpool_proxy.tls.shared_authority import Secrets


class Source(Protocol):
    """Gives the certificate that should be served now."""

    async def read(self, now: datetime) -> CertificateFiles:
        """Return it. Raises ProxyError."""
        ...


class FileSource:
    """Certificate (its chain after it) and key from two files."""

    def __init__(self, certificate_path: Path, key_path: Path) -> None:
        self._certificate_path = certificate_path
        self._key_path = key_path

    async def read(self, now: datetime) -> CertificateFiles:
        """Return what the files hold. Raises CertificateUnusable."""
        certificate, key = (_text(path) for path in (self._certificate_path, self._key_path))
        return read_files(certificate, key, "", now, f"the certificate {self._certificate_path}")


class SecretSource:
    """JSON with `certificate`, `private_key` and, if there are any, `chain` and `ca_certificate`, all PEM."""

    def __init__(self, secrets: Secrets, arn: str) -> None:
        self._secrets = secrets
        self._arn = arn

    async def read(self, now: datetime) -> CertificateFiles:
        """Return what the secret holds. Raises SecretUnreadable or CertificateUnusable."""
        origin = f"the certificate in the secret {self._arn}"
        members = _members((await self._secrets.read_secret(self._arn)).text, self._arn)
        certificate = f"{members['certificate']}\n{members.get('chain', '')}"
        return read_files(certificate, members["private_key"], members.get("ca_certificate", ""), now, origin)


class AuthoritySource:
    """A certificate signed here, by the CA that `load` gives; kept until two thirds of its time are over."""

    def __init__(self, load: LoadAuthority, host_names: tuple[str, ...]) -> None:
        self._load = load
        self._host_names = host_names
        self._generations: Generations = ()
        self._signed_by: Authority | None = None
        self._issued: tuple[str, str] = ("", "")
        self._renew_at: datetime | None = None

    async def read(self, now: datetime) -> CertificateFiles:
        """Return the certificate, a new one when it is time. Raises ProxyError when the CA was never there."""
        await self._refresh(now)
        authority = signing(self._generations, now)
        if authority != self._signed_by or self._renew_at is None or now >= self._renew_at:
            self._issued = authority.issue(self._host_names, now)
            self._signed_by, self._renew_at = authority, _renewal(self._issued[0])
        certificate, key = self._issued
        return read_files(certificate, key, trusted(self._generations, now), now, "the certificate signed here")

    async def _refresh(self, now: datetime) -> None:
        try:
            self._generations = await self._load.load()
        except ProxyError as error:
            if not any(each.not_after > now for each in self._generations):
                raise
            # The secret is out of reach or was spoilt; the CA that we have read still signs.
            logger.error("keeping the CA that was read before: %s", error)


class LoadAuthority(Protocol):
    """SharedAuthority or OwnAuthority."""

    async def load(self) -> Generations:
        """Return the generations, one of them valid at least."""
        ...


def warn_of_names(files: CertificateFiles, host_names: tuple[str, ...]) -> None:
    """Log which names that clients use are missing in a certificate that was given to us."""
    missing = [name for name in host_names if not covers(files.certificate_pem, name)]
    if missing:
        logger.warning(
            "the certificate does not name %s: clients that verify it will refuse it; have it issued for that name",
            ", ".join(missing),
        )


def _renewal(certificate_pem: str) -> datetime:
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) * 2 / 3


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CertificateUnusable(f"cannot read {path}: {reason}; give the file, readable for the proxy") from None


def _members(text: str, arn: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    needed = ("certificate", "private_key")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in needed):
        raise CertificateUnusable(
            f'the secret {arn} must hold {{"certificate": …, "private_key": …}} in PEM (and "chain", '
            '"ca_certificate"), got something else'
        )
    return {name: each for name, each in value.items() if isinstance(each, str)}
