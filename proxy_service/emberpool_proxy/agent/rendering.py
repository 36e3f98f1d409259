"""Keeps every PgBouncer's files as what is known now: credentials, certificate, peers, refused addresses, limits.

Owns what a RELOAD puts in force. PgBouncer starts with one file and reads another at a RELOAD (`SET conffile`), which
differ in what it was told since it started: so whatever a RELOAD is for, it undoes none of that, and a PgBouncer that
crashed starts with the lowest limits, with nothing to be written back at the right moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import psycopg

from emberpool_proxy.agent.engines import Engine, Engines
from emberpool_proxy.agent.wall_clock import respelled
from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.errors import RunFolderUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import (
    CERTIFICATE_FILE,
    CLIENT_CA_FILE,
    KEY_FILE,
    RUNNING_DATABASES_FILE,
    RUNNING_INI_FILE,
    EngineIdentity,
    Peer,
    RunningTerms,
    render,
    render_databases,
    timeouts,
)
from emberpool_proxy.pgbouncer.rows import DatabaseRow
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.pem import CertificateFiles

RELOAD_SECONDS = 5.0
RUNNING_FILES = (RUNNING_INI_FILE, RUNNING_DATABASES_FILE)


@dataclass(frozen=True)
class Known:
    """Everything that is rendered. `certificate` is None without TLS to clients.

    Without a `snapshot` nothing is written: an agent that started again may not reach its secrets yet, and what its
    predecessor wrote is better than nothing. `running` is what each process was told since it started, as far as it is
    known: of a process that is missing it is not. `database_host` is the spelling of the database's name that is in
    use; empty: the settings'.
    """

    snapshot: Snapshot | None = None
    certificate: CertificateFiles | None = None
    first_peer_id: int = 0
    peers: tuple[Peer, ...] = ()
    rejected: tuple[str, ...] = ()
    running: Mapping[int, RunningTerms] = field(default_factory=lambda: MappingProxyType({}))
    database_host: str = ""


class Rendering:
    """Writes the files of all processes, and has PgBouncer read them again when something changed."""

    def __init__(self, settings: ProxySettings, agent_verifier: str, known: Known) -> None:
        self._settings = settings
        self._agent_verifier = agent_verifier
        self._known = known
        self._written: dict[tuple[int, str], str | bytes] = {}
        self._written_ca: str | None = None
        self._unread: set[int] = set()  # processes that have not read again what was written since
        self._pids: dict[int, int] = {}  # of the processes that `running` is about
        self._unsure: set[int] = set()  # processes that did not answer when they were told something
        self._entries: dict[str, str] = {}  # as PgBouncer says them: all that is known while there is no snapshot
        self._lock = asyncio.Lock()  # two changes at once: the later one must not be overwritten by the earlier

    @property
    def known(self) -> Known:
        """What the files say."""
        return self._known

    @property
    def entries(self) -> Mapping[str, str]:
        """The entries of [databases] and their roles; empty while neither secrets nor PgBouncer have told them."""
        return self._known.snapshot.entries if self._known.snapshot else self._entries

    def start_with(self, snapshot: Snapshot, certificate: CertificateFiles | None, first_peer_id: int = 0) -> None:
        """Write the files that PgBouncer starts with. Raises RunFolderUnusable."""
        self._known = Known(snapshot, certificate, first_peer_id)
        self.write()
        self._unread.clear()

    def write(self) -> bool:
        """Write what differs from what was written last; return whether something did. Raises RunFolderUnusable."""
        if self._known.snapshot is None:
            return False
        changed = False
        for index in range(self._settings.pgbouncer_processes):
            changed |= self._write_files(index, self._files(index, self._known.snapshot))
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
            self.forget_ended(engines.all)
            self._known = changed(self._known)
            try:
                self.write()
            except RunFolderUnusable as error:
                logger.error("%s; pgbouncer goes on with what it has", error)
                return False
            await asyncio.gather(*(self._reload(engine) for engine in engines.all if engine.index in self._unread))
            return not self._unread

    async def respell_database_host(self, engines: Engines) -> bool:
        """Have every PgBouncer resolve the database's name anew, whatever it has cached; return whether all do.

        They get a name that differs in upper and lower case only: another one to the cache, the same to DNS and TLS.
        """
        host = self._known.database_host or self._settings.database_host
        if host.startswith("/") or respelled(host) == host:
            return True  # a socket's folder, or an address: nothing is resolved
        return await self.change(
            engines,
            lambda known: replace(known, database_host=respelled(known.database_host or self._settings.database_host)),
        )

    # --- what a process was told since it started

    def forget_ended(self, engines: Iterable[Engine]) -> None:
        """Forget what was told to processes that have ended: their successors have not heard it."""
        for engine in engines:
            if engine.pid != self._pids.get(engine.index, engine.pid):
                self._tell(engine.index, None)
                del self._pids[engine.index]

    def running(self, engine: Engine) -> RunningTerms | None:
        """Return what `engine` was told since it started; None while that is unknown."""
        if self._pids.get(engine.index) != engine.pid or engine.index in self._unsure:
            return None
        return self._known.running.get(engine.index)

    def unlearn(self, engine: Engine) -> None:
        """Take it as unknown what `engine` was told: it has not answered."""
        self._unsure.add(engine.index)

    def learn(self, engine: Engine, rows: Iterable[DatabaseRow]) -> RunningTerms:
        """Take over the limits that `engine` says it has: an agent before this one gave them."""
        rows = [row for row in rows if not row.is_console]
        self._entries = {row.name: row.force_user for row in rows}
        if rows and rows[0].host.lower() == self._settings.database_host.lower():
            self._known = replace(
                self._known, database_host=rows[0].host
            )  # an agent before this one may have respelled
        terms = RunningTerms(limits={row.name: row.max_connections or row.pool_size for row in rows})
        if earlier := self._known.running.get(engine.index):
            terms = replace(terms, settings=earlier.settings)
        self._pids[engine.index] = engine.pid
        self._tell(engine.index, terms)
        return terms

    def tell(self, engine: Engine, terms: RunningTerms) -> None:
        """Take over what `engine` is being told, so that no RELOAD undoes it; say it by SET, or by `reload`.

        Call it before: a RELOAD that is under way may read the files before or after, and the SET comes last.
        Raises RunFolderUnusable.
        """
        self._pids[engine.index] = engine.pid
        self._tell(engine.index, terms)
        self._write_files(engine.index, self._running_files(engine.index), is_told=True)

    def stand_in(self, engine: Engine, values: Mapping[str, str | None]) -> dict[str, str]:
        """Have RELOADs leave these settings of `engine` at these values; None: at what the ini says.

        Return what the caller must SET now: while a pool shrinks its lifetime is not the one that was asked for. A full
        tmpfs is logged.
        """
        earlier = self._known.running.get(engine.index, RunningTerms())
        settings = {name: value for name, value in {**earlier.settings, **values}.items() if value is not None}
        terms = replace(earlier, settings=settings)
        try:
            if self.running(engine) is None:
                self._known = replace(self._known, running={**self._known.running, engine.index: terms})
            else:
                self.tell(engine, terms)
        except RunFolderUnusable as error:
            logger.error("%s; pgbouncer's next RELOAD ends %s", error, ", ".join(values))
        return {name: value for name, value in timeouts(self._settings, terms).items() if name in values}

    def running_ini(self, engine: Engine) -> str:
        """Return the path of the file that a RELOAD reads."""
        return str(self._settings.engine_path(engine.index) / RUNNING_INI_FILE)

    async def _reload(self, engine: Engine) -> None:
        if engine.console is None:
            return
        try:
            async with asyncio.timeout(RELOAD_SECONDS):
                if self.running(engine) is None:
                    self.learn(engine, await engine.console.show_databases())
                    self._write_files(engine.index, self._running_files(engine.index))
                await engine.console.reload(self.running_ini(engine))
        except (psycopg.Error, TimeoutError, RunFolderUnusable) as error:
            fields = {"process": engine.index}
            logger.warning(
                "pgbouncer has not read its files again: %s", str(error) or "no answer", extra={"fields": fields}
            )
        else:
            self._unread.discard(engine.index)

    def _tell(self, index: int, terms: RunningTerms | None) -> None:
        self._unsure.discard(index)
        running = {**self._known.running, index: terms}
        self._known = replace(self._known, running={key: value for key, value in running.items() if value is not None})

    def _write_files(self, index: int, files: Mapping[str, str | bytes], *, is_told: bool = False) -> bool:
        changed = False
        folder: RunFolder | None = None
        for name, content in files.items():
            if self._written.get((index, name)) != content:
                folder = folder or RunFolder.prepare(self._settings.engine_path(index), self._settings.run_as_user)
                folder.write(name, content)
                self._written[index, name] = content
                changed = True
                if not is_told:
                    self._unread.add(index)
        return changed

    def _running_files(self, index: int) -> dict[str, str | bytes]:
        terms = self._known.running.get(index)
        if self._known.snapshot is None:
            text = render_databases(self._settings, self._entries, terms or RunningTerms(), self._known.database_host)
            return {RUNNING_DATABASES_FILE: text} if self._entries else {}
        files = self._files(index, self._known.snapshot)
        return {name: files[name] for name in RUNNING_FILES}

    def _files(self, index: int, snapshot: Snapshot) -> dict[str, str | bytes]:
        known = self._known
        peer_id = known.first_peer_id + index if known.first_peer_id else 0
        identity = EngineIdentity(index, peer_id, self._agent_verifier)
        files: dict[str, str | bytes] = dict(
            render(
                self._settings,
                snapshot,
                identity,
                known.peers,
                known.rejected,
                known.running.get(index),
                known.database_host,
            ).files
        )
        if known.certificate:
            files |= {CERTIFICATE_FILE: known.certificate.certificate_pem, KEY_FILE: known.certificate.key_pem}
        return files
