"""The certificate that clients see: loaded at start, then watched; the last good one stays when something is wrong.

PgBouncer takes new files at RELOAD, for new connections; those that are open go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

from emberpool_proxy.errors import ProxyError
from emberpool_proxy.log import logger
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.authority import utc_now
from emberpool_proxy.tls.pem import CertificateFiles
from emberpool_proxy.tls.shared_authority import OwnAuthority, Secrets, SharedAuthority
from emberpool_proxy.tls.sources import AuthoritySource, FileSource, SecretSource, Source, warn_of_names

FILES_CHECK_SECONDS = 5.0
EXPIRY_WARNING = timedelta(days=14)
SAY_AGAIN = timedelta(days=1)


class ClientCertificate:
    """The certificate for clients by the settings: from files, a secret, or signed here by a CA.

    The constructor opens nothing. `own` signs when the settings name nothing; `now` is the clock, for tests.
    """

    def __init__(
        self,
        settings: ProxySettings,
        secrets: Secrets,
        now: Callable[[], datetime] = utc_now,
        own: OwnAuthority | None = None,
    ) -> None:
        self._host_names = tuple(name for each in settings.client_tls_host_names.split(",") if (name := each.strip()))
        self._source, self._check_seconds = _source(settings, secrets, self._host_names, now, own)
        self._now = now
        self._current: CertificateFiles | None = None
        self._said: dict[str, datetime] = {}

    @property
    def expires_at(self) -> datetime | None:
        """When the certificate that is served ends, the first of its chain; None before `load()`."""
        return self._current.expires_at if self._current else None

    @property
    def ca_pem(self) -> str:
        """What clients verify the served certificate by; empty when that is not known here."""
        return self._current.ca_pem if self._current else ""

    async def load(self) -> CertificateFiles:
        """Return the certificate to start with. Raises CertificateUnusable or SecretUnreadable."""
        self._current = await self._source.read(self._now())
        warn_of_names(self._current, self._host_names)
        self._warn_of_expiry(self._current)
        return self._current

    async def check(self) -> CertificateFiles | None:
        """Return the certificate if another is to be served from now on, else None. Logs what is wrong, once a day."""
        try:
            found = await self._source.read(self._now())
        except ProxyError as error:
            self._say(f"the certificate is kept as it is: {error}")
            found = None
        if self._current:
            self._warn_of_expiry(found or self._current)
        return None if found == self._current else found

    async def watch(self, on_change: Callable[[CertificateFiles], Awaitable[None]]) -> None:
        """Check for ever; give each new certificate to `on_change`, again later if that raises ProxyError."""
        while True:
            await asyncio.sleep(self._check_seconds)
            found = await self.check()
            if found is None:
                continue
            try:
                await on_change(found)
            except ProxyError as error:
                self._say(f"the new certificate is not served yet: {error}")
                continue
            self._current = found
            self._said.clear()
            warn_of_names(found, self._host_names)
            logger.info("new connections get the certificate that expires at %s", found.expires_at)

    def _warn_of_expiry(self, files: CertificateFiles) -> None:
        left = files.expires_at - self._now()
        if left <= timedelta(0):
            self._say(f"the certificate that clients get has expired at {files.expires_at}: they will refuse it")
        elif left < EXPIRY_WARNING:
            self._say(f"the certificate that clients get expires at {files.expires_at}; renew it")

    def _say(self, message: str) -> None:
        now = self._now()
        if now - self._said.get(message, now - SAY_AGAIN) >= SAY_AGAIN:
            self._said[message] = now
            logger.error("%s", message)


def _source(
    settings: ProxySettings,
    secrets: Secrets,
    host_names: tuple[str, ...],
    now: Callable[[], datetime],
    own: OwnAuthority | None,
) -> tuple[Source, float]:
    """Return the source, and how often to look at it in seconds."""
    if settings.client_tls_cert_file:
        files = FileSource(Path(settings.client_tls_cert_file), Path(settings.client_tls_key_file))
        return files, min(FILES_CHECK_SECONDS, settings.credentials_check_seconds)
    if settings.client_tls_secret_arn:
        return SecretSource(secrets, settings.client_tls_secret_arn), settings.credentials_check_seconds
    if settings.client_ca_secret_arn:
        shared = SharedAuthority(secrets, settings.client_ca_secret_arn, now)
        return AuthoritySource(shared, host_names), settings.credentials_check_seconds
    return AuthoritySource(own or OwnAuthority(now), host_names), settings.credentials_check_seconds
