"""The pool that the agent keeps: what its files say, who changes them, and how it ends.

Composes the parts; each of them owns its subject: credentials, certificate, fleet, database watch, drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
from aiohttp import web

from emberpool_proxy import metrics
from emberpool_proxy.agent.budget import Budget
from emberpool_proxy.agent.budget_limits import Limits
from emberpool_proxy.agent.database_gate import logged_in
from emberpool_proxy.agent.database_watch import DatabaseWatch
from emberpool_proxy.agent.drain import Drain
from emberpool_proxy.agent.engines import ANSWER_SECONDS, Engine, Engines
from emberpool_proxy.agent.first_login import log_in_first
from emberpool_proxy.agent.fleet import PEERS_PATH, Fleet
from emberpool_proxy.agent.refusals import Refusals
from emberpool_proxy.agent.registration import Registration
from emberpool_proxy.agent.rendering import Known, Rendering
from emberpool_proxy.agent.slots import Slots
from emberpool_proxy.agent.state_file import AgentState
from emberpool_proxy.agent.stuck_cancels import move_stuck_cancels
from emberpool_proxy.agent.version_check import VersionCheck
from emberpool_proxy.agent.wall_clock import watch_wall_clock
from emberpool_proxy.agent.watch import watch_engines
from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.credentials.client_specs import client_specs
from emberpool_proxy.credentials.gate import LoginGate
from emberpool_proxy.credentials.gate_state import SLEEP_SHARE
from emberpool_proxy.credentials.probe import LoginProbe, Verdict
from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.credentials.watch import Credentials
from emberpool_proxy.errors import ProxyError, RunFolderUnusable
from emberpool_proxy.first_to_end import first_to_end
from emberpool_proxy.health import Health, serve_health
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import Peer
from emberpool_proxy.pgbouncer.log_lines import ClientLoginFailed, Event, ServerLoginFailed
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.telemetry.composed import Telemetry
from emberpool_proxy.tls.client_certificate import ClientCertificate
from emberpool_proxy.tls.database_authorities import DatabaseAuthorities
from emberpool_proxy.tls.database_tls import DatabaseTlsFaults, check_database_tls
from emberpool_proxy.tls.pem import CertificateFiles
from emberpool_proxy.tls.published_ca import PublishedCa
from emberpool_proxy.tls.shared_authority import OwnAuthority

LOAD_AGAIN_SECONDS = 5.0  # an agent that started again and cannot read its secrets yet


class Pool:
    """All parts of one task's agent. `state` is an earlier agent's when PgBouncer went on without one."""

    def __init__(
        self,
        settings: ProxySettings,
        engines: Engines,
        health: Health,
        state: AgentState,
        folder: RunFolder,
        hold: Callable[[int | None], None],
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._health = health
        self._state = state
        self._folder = folder
        self._aws = AwsCalls()
        self._rendering = Rendering(settings, state.agent_verifier, Known(first_peer_id=state.first_peer_id))
        # Half of what a client waits at most: then it hears PgBouncer's reason instead of query_wait_timeout.
        self._login_gate = LoginGate(
            lambda: engines.all,
            self._prove,
            self._rendering.stand_in,
            settings.query_wait_seconds / 2,
            settings.server_idle_seconds * SLEEP_SHARE,
            settings.agent_tick_seconds,
        )
        login_turn = asyncio.Lock()  # one login of the agent's own at a time: the budget counts it
        self._credentials = Credentials(
            settings,
            self._aws,
            probe=LoginProbe(settings, login_turn),
            hold=self._login_gate,
            earlier_users=state.client_users,
        )
        self._own_authority = OwnAuthority(kept=state.own_authority)
        self._certificate = (
            None
            if settings.client_tls_mode == "disable"
            else ClientCertificate(settings, self._aws, own=self._own_authority)
        )
        arns = tuple(dict.fromkeys(spec.secret_arn for spec in client_specs(settings) if spec.secret_arn))
        self._published_ca = PublishedCa(self._aws, arns, settings.credentials_check_seconds)
        self._fleet = Fleet(settings)
        engines.on_attached(VersionCheck(settings, health).look)
        engines.on_attached(self._begin)
        self._refusals = Refusals(engines, lambda: self._credentials.client_names)
        self._hold = hold
        limits = Limits(settings, engines, self._rendering)
        self._budget = Budget(settings, limits, self._slots(), health, self, state.control_session, login_turn)
        self._drain = Drain(settings, engines, health, Registration(settings, self._aws), self._rendering.stand_in)
        self._telemetry = Telemetry(settings, health)
        self._telemetry.status.add("certificate", self._describe_certificate)
        self._telemetry.status.add("peers", self._describe_peers)
        self._telemetry.status.add("fleet", self._fleet.describe)
        self._telemetry.status.add("credentials", self._describe_credentials)
        self._read_at = 0.0  # when the credentials in use were read
        self._database_authorities = DatabaseAuthorities(
            settings, login_turn, self._has_servers, DatabaseTlsFaults(settings).saw
        )
        self._database_watch = DatabaseWatch(
            settings, engines, health, self._probe_login, login_turn, self._database_authorities.check
        )
        for callback in (
            self._telemetry.counts.count_event,
            self._refusals.count,
            self._tell_credentials,
            self._database_authorities.saw,
            self._tell_database_watch,
        ):
            engines.on_log_event(callback)

    def serve(self, sock: socket.socket) -> AbstractAsyncContextManager[None]:
        """Answer on the health port while the context is open: health, metrics, status, and the other agents."""
        page, status = self._telemetry.page, self._telemetry.status
        routes = [web.get(PEERS_PATH, self._fleet.answer), web.post(PEERS_PATH, self._fleet.answer)]
        return serve_health(sock, self._health, page.render, status.document, routes)

    async def prepare(self) -> None:
        """Write the files that PgBouncer starts with. Raises ProxyError when they cannot be known."""
        check_database_tls(self._settings)
        (snapshot, certificate), first_peer_id = await asyncio.gather(self._load(), self._fleet.choose_identity())
        self._database_authorities.begin()
        self._rendering.start_with(snapshot, certificate, first_peer_id)
        self._keep_state()
        await self._budget.check()

    async def keep(self) -> None:
        """Keep the pool as it should be until cancelled."""
        if self._rendering.known.snapshot is None:
            await self._fleet.choose_identity(self._state.first_peer_id)
        await first_to_end(
            watch_engines(self._settings, self._engines, self._health),
            self._fleet.run(self._new_peers),
            move_stuck_cancels(self._settings, self._engines),
            self._keep_known(),
            self._refusals.run(self._new_refusals),
            self._login_gate.run(),
            self._budget.run(),
            self._database_watch.run(),
            self._database_authorities.run(),
            watch_wall_clock(self._settings.agent_tick_seconds, self._clock_went_back),
            self._telemetry.run(),
            self._keep_gauges(),
        )

    async def drain(self) -> None:
        """End every PgBouncer without losing a query."""
        await self._drain.run()

    async def close(self) -> None:
        """Close what is open; PgBouncer goes on."""
        await self._budget.close()
        await self._engines.close()
        await self._aws.close()

    def hold(self, descriptor: int | None) -> None:
        """Have the supervisor keep a duplicate of the control connection's socket, or drop it."""
        self._hold(descriptor)

    def keep_session(self, process_id: int) -> None:
        """Write down which backend holds this task's slots."""
        self._state = replace(self._state, control_session=process_id)
        try:
            self._state.write(self._folder)
        except RunFolderUnusable as error:
            logger.error("%s; an agent that starts again could not take over the slots", error)

    async def _load(self) -> tuple[Snapshot, CertificateFiles | None]:
        """Read credentials and certificate. Raises ProxyError."""
        snapshot = await self._credentials.load()
        self._read_at = time.monotonic()
        if self._certificate is None:
            return snapshot, None
        certificate = await self._certificate.load()
        # Functions cannot verify the proxy before this: it must be there before the first of them may come.
        await self._published_ca.publish(certificate.ca_pem)
        return snapshot, certificate

    async def _keep_known(self) -> None:
        while self._rendering.known.snapshot is None:
            try:
                snapshot, certificate = await self._load()
            except ProxyError as error:
                logger.error("%s; pgbouncer goes on with what it has", error)
                await asyncio.sleep(LOAD_AGAIN_SECONDS)
                continue
            await self._take_over(snapshot, certificate)
        parts = [self._credentials.watch(self._new_credentials)]
        if self._certificate:
            certificate_watched = self._certificate
            parts += [
                certificate_watched.watch(self._new_certificate),
                self._published_ca.watch(lambda: certificate_watched.ca_pem),
            ]
        await first_to_end(*parts)

    async def _begin(self, engine: Engine) -> None:
        await self._budget.begin()
        snapshot = self._rendering.known.snapshot
        await log_in_first(self._engines, engine, snapshot.entries if snapshot else (), self._prove)
        await self._login_gate.close_first(engine)

    async def _prove(self, entry: str) -> Verdict:
        self._budget.wake()  # somebody waits, or will: the pool is about to be used
        verdict = await self._credentials.prove(entry)
        if verdict is Verdict.ACCEPTED:
            self._database_authorities.answered()
        return verdict

    async def _has_servers(self) -> bool:
        """Say whether a pool is logged in at the database."""
        for console in [engine.console for engine in self._engines.all if engine.console]:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    if any(map(logged_in, await console.show_pools())):
                        return True
        return False

    def _slots(self) -> Slots | None:
        if not self._settings.shares_budget:
            return None
        return Slots(self._settings, socket.gethostname(), self._control_login, self._roles)

    def _control_login(self) -> tuple[str, str]:
        if self._rendering.known.snapshot is None:
            raise psycopg.OperationalError("the login at the database is not known yet")
        return self._probe_login()

    def _roles(self) -> frozenset[str]:
        snapshot = self._rendering.known.snapshot
        return frozenset(snapshot.entries.values()) if snapshot else frozenset()

    async def _take_over(self, snapshot: Snapshot, certificate: CertificateFiles | None) -> None:
        await self._rendering.change(
            self._engines, lambda known: replace(known, snapshot=snapshot, certificate=certificate)
        )

    async def _new_credentials(self, snapshot: Snapshot) -> bool:
        done = await self._rendering.change(self._engines, lambda known: replace(known, snapshot=snapshot))
        self._keep_state()
        self._read_at = time.monotonic()
        self._telemetry.counts.add(metrics.CREDENTIALS_RENEWALS, "ok" if done else "failed")
        return done

    async def _new_certificate(self, certificate: CertificateFiles) -> None:
        # Before it is served: a function that is shown a CA that it does not know looks into the secret for it.
        await self._published_ca.publish(certificate.ca_pem)
        if not await self._rendering.change(self._engines, lambda known: replace(known, certificate=certificate)):
            raise ProxyError("pgbouncer did not read the new files")
        self._keep_state()

    async def _new_peers(self, peers: tuple[Peer, ...]) -> bool:
        return await self._rendering.change(self._engines, lambda known: replace(known, peers=peers))

    async def _new_refusals(self, rows: tuple[str, ...]) -> None:
        await self._rendering.change(self._engines, lambda known: replace(known, rejected=rows))

    async def _clock_went_back(self) -> None:
        await self._rendering.respell_database_host(self._engines)

    def _probe_login(self) -> tuple[str, str]:
        snapshot = self._rendering.known.snapshot
        role = snapshot.entries[self._settings.database_name] if snapshot else ""
        return role, snapshot.database_logins[role] if snapshot else ""

    def _tell_database_watch(self, _index: int, event: Event) -> None:
        self._database_watch.on_log_event(event)

    def _tell_credentials(self, _index: int, event: Event) -> None:
        match event:
            case ServerLoginFailed():
                self._credentials.login_failed(event)
            case ClientLoginFailed(cause="credentials"):
                self._credentials.client_login_failed(event)
            case _:
                pass

    async def _keep_gauges(self) -> None:
        counts = self._telemetry.counts
        while True:
            counts.set(metrics.PEERS, len(self._rendering.known.peers))
            counts.set(metrics.CREDENTIALS_AGE, self._credentials_age(), "database")
            if self._certificate and (expires_at := self._certificate.expires_at):
                counts.set(metrics.CERTIFICATE_SECONDS_LEFT, (expires_at - datetime.now(UTC)).total_seconds())
            await asyncio.sleep(self._settings.agent_tick_seconds)

    def _credentials_age(self) -> float | None:
        return time.monotonic() - self._read_at if self._read_at else None

    def _describe_credentials(self) -> dict[str, object]:
        age = self._credentials_age()
        return {"age_seconds": None if age is None else round(age), "clients": sorted(self._credentials.client_names)}

    def _describe_certificate(self) -> dict[str, str | None]:
        expires_at = self._certificate.expires_at if self._certificate else None
        return {"expires_at": expires_at.isoformat() if expires_at else None}

    def _describe_peers(self) -> list[dict[str, object]]:
        peers = self._rendering.known.peers
        return [{"peer_id": peer.peer_id, "host": peer.host, "port": peer.port} for peer in peers]

    def _keep_state(self) -> None:
        known = self._rendering.known
        users = tuple(client.name for client in known.snapshot.clients) if known.snapshot else ()
        state = replace(
            self._state,
            first_peer_id=known.first_peer_id,
            client_users=users,
            own_authority=self._own_authority.to_keep(),
        )
        if state != self._state:
            state.write(self._folder)
            self._state = state
