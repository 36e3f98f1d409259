"""Keeps every PgBouncer's files as what is known now: credentials, certificate, peers, refused addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from emberpool_proxy.agent.engines import Engines
from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.errors import RunFolderUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import CERTIFICATE_FILE, CLIENT_CA_FILE, KEY_FILE, EngineIdentity, Peer, render
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.pem import CertificateFiles

RELOAD_SECONDS = 5.0


@dataclass(frozen=True)
class Known:
    """Everything that is rendered. `certificate` is None without TLS to clients.

    Without a `snapshot` nothing is written: an agent that started again may not reach its secrets yet, and what its
    predecessor wrote is better than nothing.
    """

    snapshot: Snapshot | None = None
    certificate: CertificateFiles | None = None
    first_peer_id: int = 0
    peers: tuple[Peer, ...] = ()
    rejected: tuple[str, ...] = ()


class Rendering:
    """Writes the files of all processes, and has PgBouncer read them again when something changed."""

    def __init__(self, settings: ProxySettings, agent_verifier: str, known: Known) -> None:
        self._settings = settings
        self._agent_verifier = agent_verifier
        self._known = known
        self._written: dict[tuple[int, str], str | bytes] = {}
        self._written_ca: str | None = None
        self._is_unread = False  # PgBouncer has started, and not read again what was written since
        self._lock = asyncio.Lock()  # two changes at once: the later one must not be overwritten by the earlier

    @property
    def known(self) -> Known:
        """What the files say."""
        return self._known

    def start_with(self, snapshot: Snapshot, certificate: CertificateFiles | None, first_peer_id: int = 0) -> None:
        """Write the files that PgBouncer starts with. Raises RunFolderUnusable."""
        self._known = Known(snapshot, certificate, first_peer_id)
        self.write()
        self._is_unread = False

    def write(self) -> bool:
        """Write what differs from what was written last; return whether something did. Raises RunFolderUnusable."""
        if self._known.snapshot is None:
            return False
        changed = False
        for index in range(self._settings.pgbouncer_processes):
            folder = RunFolder.prepare(self._settings.engine_path(index), self._settings.run_as_user)
            for name, content in self._files(index, self._known.snapshot).items():
                if self._written.get((index, name)) != content:
                    folder.write(name, content)
                    self._written[index, name] = content
                    changed = self._is_unread = True
        certificate = self._known.certificate
        if certificate and certificate.ca_pem != self._written_ca:
            RunFolder.existing(self._settings.run_path, self._settings.run_as_user).write(
                CLIENT_CA_FILE, certificate.ca_pem
            )
            self._written_ca = certificate.ca_pem
        return changed

    async def change(self, engines: Engines, changed: Callable[[Known], Known]) -> bool:
        """Write the files as `changed` makes them, and RELOAD; return whether every PgBouncer has them.

        A full tmpfs or a silent console is logged, and the next change tries again.
        """
        async with self._lock:
            self._known = changed(self._known)
            try:
                self.write()
            except RunFolderUnusable as error:
                logger.error("%s; pgbouncer goes on with what it has", error)
                return False
            if self._is_unread:
                self._is_unread = not await engines.for_each(lambda console: console.reload(), RELOAD_SECONDS)
            return not self._is_unread

    def _files(self, index: int, snapshot: Snapshot) -> dict[str, str | bytes]:
        known = self._known
        peer_id = known.first_peer_id + index if known.first_peer_id else 0
        identity = EngineIdentity(index, peer_id, self._agent_verifier)
        files: dict[str, str | bytes] = dict(
            render(self._settings, snapshot, identity, known.peers, known.rejected).files
        )
        if known.certificate:
            files |= {CERTIFICATE_FILE: known.certificate.certificate_pem, KEY_FILE: known.certificate.key_pem}
        return files
