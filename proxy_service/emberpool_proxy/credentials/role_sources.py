"""Where a database login comes from: a secret, an IAM token, a file or the environment. Best candidate first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from emberpool_proxy.aws import AWSCURRENT, AWSPENDING, AWSPREVIOUS, AwsCalls
from emberpool_proxy.credentials.secret_text import login_in, problem_of
from emberpool_proxy.credentials.snapshot import Login
from emberpool_proxy.errors import AwsCallFailed, DatabaseLoginUnusable, SecretUnreadable
from emberpool_proxy.settings import LONGEST_SERVER_PASSWORD_BYTES, variable

TOKEN_RENEWAL_SECONDS = 600.0  # RDS takes one for 15 minutes
FILE_LOOK_SECONDS = 1.0  # a stat; Kubernetes swaps a link when it updates a mounted secret


class RoleSource(Protocol):
    """Gives the logins that one role may have now; `description` is for log lines and errors."""

    @property
    def description(self) -> str:
        """What an operator would look at."""
        ...

    @property
    def longest_trust_seconds(self) -> float | None:
        """After how long it must be read again, whatever the schedule says; None: no bound."""
        ...

    @property
    def makes_new_logins(self) -> bool:
        """Whether each read gives another login that needs no proof."""
        ...

    async def read(self) -> list[Login]:
        """Return the logins that may be valid, the most likely first. Raises ProxyError."""
        ...


class SecretSource:
    """AWSCURRENT, then AWSPENDING (a rotation is under way), then AWSPREVIOUS (one was taken back)."""

    longest_trust_seconds: float | None = None
    makes_new_logins = False

    def __init__(self, aws: AwsCalls, arn: str, default_user: str = "") -> None:
        self._aws = aws
        self._arn = arn
        self._default_user = default_user
        self.description = f"secret {arn}"

    async def read(self) -> list[Login]:
        """Return the logins of the secret's stages. Raises SecretUnreadable when AWSCURRENT cannot be read."""
        current, *others = await asyncio.gather(
            self._aws.get_secret(self._arn, AWSCURRENT),
            self._stage_or_nothing(AWSPENDING),
            self._stage_or_nothing(AWSPREVIOUS),
        )
        found = [login_in(current, self._arn, self._default_user)]
        return found + [login for login in others if login is not None and login not in found]

    async def _stage_or_nothing(self, stage: str) -> Login | None:
        # Most secrets have no such version, and one that cannot be read or used must not stop the first.
        try:
            return login_in(await self._aws.get_secret(self._arn, stage), self._arn, self._default_user)
        except SecretUnreadable:
            return None


class IamSource:
    """RDS IAM tokens: signed by ourselves, good for 15 minutes."""

    longest_trust_seconds: float | None = TOKEN_RENEWAL_SECONDS
    makes_new_logins = True

    def __init__(self, aws: AwsCalls, host: str, port: int, user: str) -> None:
        self._aws = aws
        self._host, self._port, self._user = host, port, user
        self.description = f"IAM token for {user}"

    async def read(self) -> list[Login]:
        """Return a new token. Raises AwsCallFailed, DatabaseLoginUnusable when PgBouncer cannot send it."""
        token = await self._aws.rds_token(self._host, self._port, self._user)
        if len(token) > LONGEST_SERVER_PASSWORD_BYTES:
            raise DatabaseLoginUnusable(
                f"the IAM token for {self._user} has {len(token)} bytes and PgBouncer sends at most "
                f"{LONGEST_SERVER_PASSWORD_BYTES}: give the task a role without session tags or policies, or a shorter "
                f"database host name, or set {variable('database_auth')} to password"
            )
        return [Login(self._user, token)]


class IamSecretSource:
    """IAM tokens for the role that a secret names."""

    longest_trust_seconds: float | None = TOKEN_RENEWAL_SECONDS
    makes_new_logins = True

    def __init__(self, aws: AwsCalls, host: str, port: int, arn: str) -> None:
        self._aws = aws
        self._host, self._port, self._arn = host, port, arn
        self.description = f"IAM token for the user of the secret {arn}"

    async def read(self) -> list[Login]:
        """Return a new token for the secret's `username`. Raises AwsCallFailed, DatabaseLoginUnusable."""
        login = login_in(await self._aws.get_secret(self._arn), self._arn)
        return await IamSource(self._aws, self._host, self._port, login.user).read()


class FileSource:
    """A file with the password and nothing else but a line's end."""

    longest_trust_seconds: float | None = FILE_LOOK_SECONDS
    makes_new_logins = False

    def __init__(self, path: Path, user: str) -> None:
        self._path = path
        self._user = user
        self.description = f"file {path}"

    async def read(self) -> list[Login]:
        """Return the login of the file. Raises DatabaseLoginUnusable."""
        try:
            password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise DatabaseLoginUnusable(
                f"cannot read the password of {self._user} from {self._path}: {reason}"
            ) from None
        login = Login(self._user, password)
        problem = problem_of(login) if password else "is empty"
        if problem:
            raise DatabaseLoginUnusable(f"the file {self._path} {problem}")
        return [login]


class FixedSource:
    """The password that the environment gave: it cannot change."""

    longest_trust_seconds: float | None = None
    makes_new_logins = False

    def __init__(self, login: Login) -> None:
        self._login = login
        self.description = variable("database_password")

    async def read(self) -> list[Login]:
        """Return the one login."""
        return [self._login]


SOURCE_ERRORS = (AwsCallFailed, DatabaseLoginUnusable)
