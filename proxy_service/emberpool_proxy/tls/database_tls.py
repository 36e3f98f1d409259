"""TLS to the database: what must be there before PgBouncer starts, and what a refusal means while it runs.

PgBouncer itself never falls back to less than its mode, but it starts with a file of authorities that it cannot read,
and then fails at each connection, of which clients see a `query_wait_timeout` only.
"""

from __future__ import annotations

import os
import pwd
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from emberpool_proxy.errors import CertificateUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import bundle_path
from emberpool_proxy.pgbouncer.log_lines import Event, ServerUnreachable
from emberpool_proxy.settings import ProxySettings, variable
from emberpool_proxy.tls.authority import utc_now

SAY_AGAIN_SECONDS = 60.0  # PgBouncer tries twice a second


def check_database_tls(settings: ProxySettings, now: Callable[[], datetime] = utc_now) -> None:
    """Log what is weaker than verify-full, and raise CertificateUnusable when the authorities cannot be used."""
    if settings.server_tls_mode != "verify-full" and not settings.is_database_local:
        logger.warning(
            "the database's identity is not verified (%s is %s): whoever can answer in its place gets the queries, and "
            "may get the password",
            variable("server_tls_mode"),
            settings.server_tls_mode,
        )
    if not settings.server_tls_mode.startswith("verify-"):
        return
    path = bundle_path(settings)
    # Read by OpenSSL, as PgBouncer does: the system's bundles have authorities that other libraries refuse.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise _unreadable(path, "OpenSSL finds no certificate in it") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
    if ends and max(ends) <= now().timestamp():
        raise CertificateUnusable(
            f"the database's authorities {path} have all expired, {len(ends)} of them; give a current bundle"
        )
    if os.geteuid() == 0 and not _may_read(settings.run_as_user, path):
        raise _unreadable(path, f"PgBouncer runs as {settings.run_as_user}, who may not read it")


class DatabaseTlsFaults:
    """Says in one line what to do when the database fails TLS, however often PgBouncer tries."""

    def __init__(self, settings: ProxySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._said: dict[str, float] = {}

    def saw(self, _: int, event: Event) -> None:
        """Take an event of PgBouncer's log."""
        if not isinstance(event, ServerUnreachable):
            return
        words = self._words(event.reason)
        now = self._clock()
        if words and now - self._said.get(words, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
            self._said[words] = now
            logger.error("%s; clients wait and then get query_wait_timeout, nothing is sent unverified", words)

    def _words(self, reason: str) -> str | None:
        """Return what is wrong and the next step, None when it is not about TLS."""
        host, authorities = self._settings.database_host, bundle_path(self._settings)
        if "certificate verify failed" in reason or "certificate has expired" in reason:
            return (
                f"the certificate of {host} is not signed by an authority in {authorities}, or has expired: let "
                f"{variable('server_tls_ca_file')} name the bundle of the database's provider"
            )
        if "not present in server certificate" in reason:
            return (
                f"the certificate of the database is for another name ({reason.rpartition(': ')[2]}): let "
                f"{variable('database_host')} be the name in it"
            )
        if reason.startswith("server refused SSL"):
            return f"{host} has no TLS: switch it on there (ssl = on; RDS always has it)"
        if reason.startswith("sslreq processing failed"):
            return f"the database's authorities {authorities} cannot be read any more: put the file back"
        return None


def _unreadable(path: Path, reason: str) -> CertificateUnusable:
    return CertificateUnusable(
        f"cannot read the database's authorities {path}: {reason}; let {variable('server_tls_ca_file')} name a bundle "
        "in PEM (the image has RDS's and the public ones)"
    )


def _may_read(user: str, path: Path) -> bool:
    """Say whether `user` may read the file, by the modes of it and of its folders."""
    try:
        owner = pwd.getpwnam(user)
    except KeyError:
        return True  # refused elsewhere, with its own message
    groups = set(os.getgrouplist(user, owner.pw_gid))

    def allows(each: Path, bit: int) -> bool:
        found = each.stat()
        shift = 6 if found.st_uid == owner.pw_uid else 3 if found.st_gid in groups else 0
        return bool(found.st_mode >> shift & bit)

    real = path.resolve()
    return allows(real, 4) and all(allows(folder, 1) for folder in real.parents)
