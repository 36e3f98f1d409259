"""The users of the proxy, from their secrets: verifiers only, and no user vanishes without a trace.

During a rotation the versions of a secret may name different users (Secrets Manager's two-user strategy): all of them
may log in. Where they name the same user, PgBouncer has one verifier: AWSCURRENT's.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable

from emberpool_proxy.aws import AWSCURRENT, AWSPENDING, AWSPREVIOUS, AwsCalls
from emberpool_proxy.credentials.client_specs import ClientSpec
from emberpool_proxy.credentials.secret_text import login_in
from emberpool_proxy.credentials.snapshot import Login
from emberpool_proxy.errors import SecretUnreadable
from emberpool_proxy.pgbouncer.scram import verifier

ABSENT_CODE = "ResourceNotFoundException"
RANDOM_BYTES = 32
# For requests that are signed, not for logins: environments learn the new password when the old one is refused.
OVERLAP_SECONDS = 900.0


class VerifierCache:
    """One verifier a user, kept while the password is the same: a new salt would be a needless change of files.

    Holds no password: a digest under a key of this process tells whether one has changed.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(RANDOM_BYTES)
        self._made: dict[str, tuple[bytes, str]] = {}

    def verifier(self, login: Login) -> str:
        """Return the verifier of a login."""
        digest = hmac.digest(self._key, login.password.encode(), hashlib.sha256)
        known = self._made.get(login.user)
        if known is None or not hmac.compare_digest(known[0], digest):
            known = self._made[login.user] = (digest, verifier(login.password))
        return known[1]

    def locked(self, user: str) -> str:
        """Return a verifier that no password has, the same at every call."""
        known = self._made.get(user)
        if known is None or known[0]:
            known = self._made[user] = (b"", verifier(secrets.token_urlsafe(RANDOM_BYTES)))
        return known[1]


class ClientSecret:
    """The logins of one ClientSpec, by stage."""

    def __init__(self, aws: AwsCalls, spec: ClientSpec, fixed: Login | None = None) -> None:
        self._aws = aws
        self.spec = spec
        self._by_stage: dict[str, Login] = {} if fixed is None else {AWSCURRENT: fixed}
        self._overlap_until = 0.0

    async def read(self) -> None:
        """Read all stages again. Raises SecretUnreadable when AWSCURRENT cannot be read; the others then stand, too."""
        if not self.spec.secret_arn:
            return
        stages = (AWSCURRENT, AWSPENDING, AWSPREVIOUS)
        found = await asyncio.gather(*map(self._stage, stages))
        earlier = self._by_stage.get(AWSCURRENT)
        self._by_stage = {stage: login for stage, login in zip(stages, found, strict=True) if login is not None}
        if self._by_stage[AWSCURRENT] != earlier:
            self._overlap_until = time.monotonic() + OVERLAP_SECONDS

    async def _stage(self, stage: str) -> Login | None:
        arn = self.spec.secret_arn
        try:
            return login_in(await self._aws.get_secret(arn, stage), arn)
        except SecretUnreadable as error:
            if stage == AWSCURRENT:
                raise
            # A user must not be locked out because AWS did not answer: only "there is none" removes one.
            return None if error.code == ABSENT_CODE else self._by_stage.get(stage)

    def passwords(self, user: str) -> tuple[str, ...]:
        """Return the passwords that may sign as `user`: the one it logs in with first, then those of a rotation.

        The one before is among them for OVERLAP_SECONDS.
        """
        stages = [AWSCURRENT, AWSPENDING]
        if time.monotonic() < self._overlap_until:
            stages.append(AWSPREVIOUS)
        found = [login for stage in stages if (login := self._by_stage.get(stage)) and login.user == user]
        known = [login.password for login in self.logins() if login.user == user]
        return tuple(dict.fromkeys([*known, *(login.password for login in found)]))

    def logins(self) -> Iterable[Login]:
        """Return one login a user, AWSCURRENT's where the stages name the same one."""
        by_user: dict[str, Login] = {}
        for stage in (AWSCURRENT, AWSPENDING, AWSPREVIOUS):
            if stage in self._by_stage:
                by_user.setdefault(self._by_stage[stage].user, self._by_stage[stage])
        return by_user.values()
