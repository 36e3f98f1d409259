"""What PgBouncer's files are rendered from: the database's logins and the clients, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Login:
    """A user and its password; the password never appears in the repr."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class ClientUser:
    """A user of the proxy: its SCRAM verifier, the one [databases] entry that it may use and that entry's role.

    `passwords` are what signs requests to the data endpoint, the current one first; empty when there is no endpoint.
    `max_connections` bounds its client connections (0: no bound of its own). A removed user keeps a line in the auth
    file, with a random verifier: PgBouncer 1.25 lets a deleted one in who had logged in before.
    """

    name: str
    verifier: str = field(repr=False)
    entry: str
    database_role: str
    max_connections: int = 0
    is_removed: bool = False
    passwords: tuple[str, ...] = field(default=(), repr=False)
    is_read_only: bool = False  # at the data endpoint


@dataclass(frozen=True)
class Snapshot:
    """`database_logins` are plain passwords by role: those in use, and those of roles that were.

    A client that logged in while an entry had another role keeps that role's pool until it leaves, so the role stays.
    """

    database_logins: Mapping[str, str] = field(repr=False)
    clients: tuple[ClientUser, ...]
    entries: Mapping[str, str]  # the role of each [databases] entry
