"""The CA's certificate in the secrets that functions log in with, so that they verify the proxy without asking more.

A function reads that secret at its cold start anyway. The member `ca_certificate` is added beside user and password,
which stay as they are; a rotation that writes a version without it gets it added again.

While tasks change over to another CA, each adds its own and leaves the others' alone: there is no moment at which a
function finds only the one that its task does not have. What no task adds again is removed some checks later.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Protocol

from emberpool_proxy.aws import SecretVersion
from emberpool_proxy.errors import ProxyError, SecretAlreadyWritten
from emberpool_proxy.log import logger

MEMBER = "ca_certificate"
ROUNDS = 5
CHECKS_TO_FORGET = 3  # in which every task looks at its certificate, and at the secret
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


class SwappableSecrets(Protocol):
    """The part of aws.AwsCalls that is needed here."""

    async def read_secret(self, arn: str) -> SecretVersion:
        """Return what AWSCURRENT is now."""
        ...

    async def swap_secret(self, arn: str, value: str, request_token: str, replaces: str) -> None:
        """Make a new version AWSCURRENT if `replaces` still is it, else raise SecretAlreadyWritten."""
        ...


class PublishedCa:
    """Keeps the CA's certificates in the client secrets `arns`."""

    def __init__(
        self,
        secrets: SwappableSecrets,
        arns: tuple[str, ...],
        check_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secrets = secrets
        self._arns = arns
        self._check_seconds = check_seconds
        self._clock = clock
        self._said: set[str] = set()
        # By secret: certificates that are not ours, and since when they are all that is there beside ours.
        self._others: dict[str, tuple[frozenset[str], float]] = {}

    async def publish(self, ca_pem: str) -> None:
        """Add `ca_pem` to every secret that does not have it; what cannot be written is logged, once.

        Nothing is written while `ca_pem` is empty: then somebody else tells the functions what to trust.
        """
        for arn in self._arns if ca_pem else ():
            try:
                if await self._publish(arn, ca_pem):
                    logger.info("functions find the CA's certificate in the secret %s", arn)
            except ProxyError as error:
                self._say(f"functions do not find the proxy's CA certificate in their secret: {error}")

    async def watch(self, ca_pem: Callable[[], str]) -> None:
        """Look for ever whether the secrets still have it: a rotation may have written one without."""
        while True:
            await asyncio.sleep(self._check_seconds)
            await self.publish(ca_pem())

    async def _publish(self, arn: str, ca_pem: str) -> bool:
        for _ in range(ROUNDS):
            current = await self._secrets.read_secret(arn)
            members = _members(current.text)
            if members is None:
                self._say(f"the secret {arn} must hold a JSON object with username and password; it has another shape")
                return False
            published = self._to_publish(arn, str(members.get(MEMBER, "")), ca_pem)
            if members.get(MEMBER) == published:
                return False
            value, token = json.dumps({**members, MEMBER: published}), _token(current.version_id, published)
            try:
                await self._secrets.swap_secret(arn, value, token, current.version_id)
            except SecretAlreadyWritten:
                continue  # another task, or a rotation: look again
            return True
        return False

    def _to_publish(self, arn: str, there: str, ca_pem: str) -> str:
        """Return ours and, until it is clear that no task has them any more, the others that are there."""
        ours = _certificates(ca_pem)
        others = frozenset(_certificates(there)) - frozenset(ours)
        now = self._clock()
        known, since = self._others.get(arn, (others, now))
        if known != others:
            since = now
        self._others[arn] = others, since
        if not others or now - since > CHECKS_TO_FORGET * self._check_seconds:
            return "".join(ours)
        # In the order in which they are there: two tasks that agree must not go on rewriting each other.
        return "".join(dict.fromkeys(_certificates(there) + ours))

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.error("%s", message)


def _token(version_id: str, ca_pem: str) -> str:
    # The same in every task, so that they all write one version. Version ids are in CloudTrail's log: nothing of
    # the password goes into it.
    return hashlib.sha256(f"emberpool {version_id} {ca_pem}".encode()).hexdigest()


def _certificates(pem: str) -> list[str]:
    return [found.rstrip("\n") + "\n" for found in CERTIFICATE.findall(pem)]


def _members(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
