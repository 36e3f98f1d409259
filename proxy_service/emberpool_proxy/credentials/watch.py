"""All credentials of the proxy: loaded at start, kept right while it runs.

Owns the snapshot that PgBouncer's files are rendered from. Which login a role should use is `role`'s, when to look at
it `role_watch`'s; writing files and RELOAD are the caller's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.credentials.client_secrets import ClientSecret, VerifierCache
from emberpool_proxy.credentials.client_specs import ClientSpec, client_specs
from emberpool_proxy.credentials.probe import LoginProbe, Verdict
from emberpool_proxy.credentials.role import Probe, Role
from emberpool_proxy.credentials.role_sources import (
    FileSource,
    FixedSource,
    IamSecretSource,
    IamSource,
    RoleSource,
    SecretSource,
)
from emberpool_proxy.credentials.role_watch import JITTER, LoginHold, Pause, RoleWatch
from emberpool_proxy.credentials.snapshot import ClientUser, Login, Snapshot
from emberpool_proxy.errors import ClientUsersClash, ProxyError
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import ClientLoginFailed, ServerLoginFailed
from emberpool_proxy.settings import ProxySettings

LOAD_SECONDS = 30.0  # a new task's role, secret or network may take that long to work
# A function with a wrong password must not make us read its secret all the time.
SHORTEST_CLIENT_LOOK_SECONDS = 10.0
UNDELIVERED_SECONDS = 5.0  # after `on_change` failed

OnChange = Callable[[Snapshot], Awaitable[object]]


class Credentials:
    """The pool's logins at the database and the clients' logins at the pool.

    `earlier_users` are users that an agent before this one wrote: those that are no clients any more are locked rather
    than forgotten. Opens nothing until `load()`. Raises SettingsInvalid for a wrong `clients`.
    """

    def __init__(
        self,
        settings: ProxySettings,
        aws: AwsCalls,
        probe: Probe | None = None,
        hold: LoginHold | None = None,
        earlier_users: Iterable[str] = (),
    ) -> None:
        self._settings = settings
        specs = client_specs(settings)
        self._roles = _watches(settings, specs, aws, probe or LoginProbe(settings), hold)
        self._clients = [ClientSecret(aws, spec, _fixed_client(spec, settings)) for spec in specs]
        self._verifiers = VerifierCache()
        self._known_users: dict[str, ClientUser | None] = dict.fromkeys(earlier_users)
        self._client_failed = asyncio.Event()
        self._publishing = asyncio.Lock()  # two changes at once: the later snapshot must be delivered last
        self._delivered: Snapshot | None = None

    async def load(self, within_seconds: float = LOAD_SECONDS) -> Snapshot:
        """Read everything. What fails is tried again, for `within_seconds`; then its ProxyError is raised."""
        until, pause = time.monotonic() + within_seconds, Pause(longest=within_seconds / 4)
        told = ""
        while True:
            try:
                await self._read_all()
                self._delivered = self._snapshot()
            except ProxyError as error:
                seconds = pause.next()
                if time.monotonic() + seconds >= until:
                    raise
                if str(error) != told:
                    told = str(error)
                    logger.warning("%s; trying again for up to %g s", error, within_seconds)
                await asyncio.sleep(seconds)
            else:
                return self._delivered

    async def watch(self, on_change: OnChange) -> None:
        """Keep looking until cancelled; `on_change` gets each new snapshot, and again later if it returned False."""

        async def publish() -> None:
            await self._publish(on_change)

        async with asyncio.TaskGroup() as tasks:
            for watch in self._roles:
                tasks.create_task(watch.run(publish))
            tasks.create_task(self._watch_clients(publish))

    def login_failed(self, event: ServerLoginFailed) -> None:
        """Look at once: the database refused a login. Call it for each one that PgBouncer logs."""
        if not event.is_about_credentials:
            return
        for watch in self._roles:
            if not event.user or event.user in watch.role.logins:
                watch.login_failed(event.user or watch.role.user)

    async def prove(self, entry: str) -> Verdict:
        """Ask the database whether it accepts the login of a [databases] entry; a refused one is mended meanwhile."""
        return await next(watch for watch in self._roles if entry in watch.entries).prove()

    def client_login_failed(self, event: ClientLoginFailed) -> None:
        """Look soon: a client was refused, perhaps because its password is newer than ours."""
        if event.cause == "credentials" and event.user in self._known_users:
            self._client_failed.set()

    @property
    def client_names(self) -> frozenset[str]:
        """The users that may log in at the pool, as delivered last."""
        clients = self._delivered.clients if self._delivered else ()
        return frozenset(client.name for client in clients if not client.is_removed)

    async def _read_all(self) -> None:
        reads = (*(watch.role.load() for watch in self._roles), *(client.read() for client in self._clients))
        results = await asyncio.gather(*reads, return_exceptions=True)
        # The first error is raised once all have ended: none of them may go on behind a second try.
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _watch_clients(self, publish: Callable[[], Awaitable[None]]) -> None:
        if not any(client.spec.secret_arn for client in self._clients):
            return  # they cannot change
        pause, is_failing = Pause(), False
        while True:
            longest = self._settings.credentials_check_seconds
            seconds = min(pause.next(), longest) if is_failing else longest * random.uniform(1 - JITTER, 1)  # noqa: S311
            try:
                async with asyncio.timeout(seconds):
                    await self._client_failed.wait()
            except TimeoutError:
                pass
            is_failing = not await self._read_clients(is_failing)
            if not is_failing:
                pause.reset()
                await publish()
            if self._client_failed.is_set():
                await asyncio.sleep(min(SHORTEST_CLIENT_LOOK_SECONDS, longest))
                self._client_failed.clear()

    async def _read_clients(self, was_failing: bool) -> bool:
        results = await asyncio.gather(*(client.read() for client in self._clients), return_exceptions=True)
        for result in results:
            if isinstance(result, ProxyError):
                if not was_failing:
                    logger.error("%s; the clients that are known stay", result)
            elif isinstance(result, BaseException):
                raise result
        return not any(results)

    async def _publish(self, on_change: OnChange) -> None:
        async with self._publishing:
            try:
                snapshot = self._snapshot()
            except ClientUsersClash as clash:
                logger.error("%s; the credentials that are known stay", clash)
                return
            while snapshot != self._delivered:
                if await on_change(snapshot) is not False:
                    self._delivered = snapshot
                    return
                await asyncio.sleep(UNDELIVERED_SECONDS)
                snapshot = self._snapshot()

    def _snapshot(self) -> Snapshot:
        """Return what is known now. Raises ClientUsersClash."""
        roles = {entry: watch.role.user for watch in self._roles for entry in watch.entries}
        logins = {user: password for watch in self._roles for user, password in watch.role.logins.items()}
        found: dict[str, ClientUser] = {}
        for client in self._clients:
            for user in self._users_of(client, roles):
                if user.name in found or user.name in logins:
                    other = "a role of the database" if user.name in logins else "another client"
                    raise ClientUsersClash(
                        f"the secret {client.spec.secret_arn or '(client_user)'} has the user name {user.name}, as has "
                        f"{other}: every client has a name of its own"
                    )
                found[user.name] = user
        self._known_users.update(found)
        gone = (self._locked(name) for name in self._known_users if name not in found and name not in logins)
        return Snapshot(logins, (*found.values(), *gone), roles)

    def _users_of(self, client: ClientSecret, roles: dict[str, str]) -> Iterable[ClientUser]:
        spec = client.spec
        for login in client.logins():
            yield ClientUser(
                login.user,
                self._verifiers.verifier(login),
                spec.entry,
                roles[spec.entry],
                spec.max_connections,
                passwords=client.passwords(login.user) if self._settings.data_port else (),
                is_read_only=spec.read_only,
            )

    def _locked(self, name: str) -> ClientUser:
        return ClientUser(name, self._verifiers.locked(name), entry="", database_role="", is_removed=True)


def _watches(
    settings: ProxySettings, specs: tuple[ClientSpec, ...], aws: AwsCalls, probe: Probe, hold: LoginHold | None
) -> list[RoleWatch]:
    entries: dict[tuple[str, str], set[str]] = {("", ""): {settings.database_name}}
    for spec in specs:
        entries.setdefault((spec.database_role_secret_arn, spec.database_role), set()).add(spec.entry)
    return [
        RoleWatch(
            Role(_source(settings, aws, *role), probe),
            frozenset(names),
            settings.credentials_check_seconds,
            hold,
            settings.query_wait_seconds,
        )
        for role, names in entries.items()
    ]


def _source(settings: ProxySettings, aws: AwsCalls, secret_arn: str, role: str) -> RoleSource:
    host, port = settings.database_host, settings.database_port
    if settings.database_auth == "iam":
        user = role or settings.database_user
        return (
            IamSource(aws, host, port, user) if user else IamSecretSource(aws, host, port, settings.database_secret_arn)
        )
    if secret_arn:
        return SecretSource(aws, secret_arn)
    if settings.database_secret_arn:
        return SecretSource(aws, settings.database_secret_arn, settings.database_user)
    if settings.database_password_file:
        return FileSource(Path(settings.database_password_file), settings.database_user)
    return FixedSource(Login(settings.database_user, settings.database_password))


def _fixed_client(spec: ClientSpec, settings: ProxySettings) -> Login | None:
    return None if spec.secret_arn else Login(settings.client_user, settings.client_password)
