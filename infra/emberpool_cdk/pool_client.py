"""A further user of a pool, with a secret of its own: whose functions can be told apart, limited and locked out."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from emberpool_cdk.pool_secrets import CLIENT_USER, grant_client, grant_read, make_client_secret
from emberpool_proxy.settings import PLAIN_NAME, RESERVED_NAMES, variable

MOST_CLIENTS = 200  # the proxy takes no more: it reads each one's secret at every check


class PoolClient(Construct):
    """A user at the proxy with its own password; `PoolProxy.add_client` makes it, `attach(function, client=…)` uses it.

    `entry` is the database name that its functions connect to.
    """

    def __init__(
        self,
        scope: Construct,
        user: str,
        *,
        entry: str,
        max_connections: int | None,
        read_only: bool,
        encryption_key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, f"Client-{user}")
        self.user = user
        self.entry = entry
        self.max_connections = max_connections
        self.read_only = read_only
        self.client_secret = make_client_secret(self, encryption_key, user)

    def grant_connect(self, grantee: iam.IGrantable) -> iam.Grant:
        """Allow reading this client's password. Whoever has it and reaches the port is in."""
        return grant_read(self.client_secret, grantee)


class PoolClients:
    """The further users of `pool`, as they are told to its container; each of `roles` is an entry of its own."""

    def __init__(
        self,
        pool: Construct,
        *,
        database_name: str,
        roles: Mapping[str, secretsmanager.ISecret],
        most_connections: int,
        encryption_key: kms.IKey | None,
    ) -> None:
        for entry in roles:
            _check_name("an entry of database_roles", entry, (*RESERVED_NAMES, database_name))
        self._pool = pool
        self._roles = dict(roles)
        self._most_connections = most_connections
        self._encryption_key = encryption_key
        self._clients: list[PoolClient] = []
        self.entries = (database_name, *self._roles)

    def serve_by(self, container: ecs.ContainerDefinition, task_role: iam.IRole) -> None:
        """Say which container and whose role serve them."""
        self._container = container
        self._task_role = task_role

    def add(self, user: str, *, entry: str | None, max_connections: int | None, read_only: bool) -> PoolClient:
        """Make a user. Raises ValueError for a name, an entry or a limit that cannot be."""
        entry = entry or self.entries[0]
        self._check(user, entry, max_connections)
        client = PoolClient(
            self._pool,
            user,
            entry=entry,
            max_connections=max_connections,
            read_only=read_only,
            encryption_key=self._encryption_key,
        )
        self._clients.append(client)
        self._container.add_environment(
            variable("clients"), json.dumps([self._element(each) for each in self._clients])
        )
        grant_client(self._task_role, client.client_secret)
        if entry in self._roles:
            grant_read(self._roles[entry], self._task_role)
        return client

    def _element(self, client: PoolClient) -> dict[str, str | int]:
        element: dict[str, str | int] = {"secret_arn": client.client_secret.secret_arn, "entry": client.entry}
        if client.entry in self._roles:
            element["database_role_secret_arn"] = self._roles[client.entry].secret_arn
        if client.max_connections is not None:
            element["max_connections"] = client.max_connections
        if client.read_only:
            element["read_only"] = True
        return element

    def _check(self, user: str, entry: str, max_connections: int | None) -> None:
        users = [CLIENT_USER, *(client.user for client in self._clients)]
        _check_name("a client's name", user, RESERVED_NAMES)
        if user in users:
            raise ValueError(f"the pool has a client {user!r} already: it has {', '.join(users)}")
        if len(self._clients) >= MOST_CLIENTS:
            raise ValueError(f"a pool has at most {MOST_CLIENTS} further clients")
        if entry not in self.entries:
            raise ValueError(
                f"there is no entry {entry!r}: the pool has {', '.join(self.entries)}; give it one more by "
                "PoolProxy(database_roles={name: secret})"
            )
        if max_connections is not None and not 0 <= max_connections <= self._most_connections:
            raise ValueError(
                f"max_connections of a client must be between 0 (no limit of its own) and {self._most_connections}, "
                f"the setting max_client_connections, got {max_connections}"
            )


def _check_name(what: str, name: str, taken: tuple[str, ...]) -> None:
    if not PLAIN_NAME.fullmatch(name) or name in taken:
        raise ValueError(f"{what} must match {PLAIN_NAME.pattern} and be none of {', '.join(taken)}, got {name!r}")
