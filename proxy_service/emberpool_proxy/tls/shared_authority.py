"""The deployment's own CA, made once and shared by all tasks through one secret.

Two tasks that find the secret empty at once must end with one CA. Secrets Manager gives that: the request token of a
write becomes the new version's id, and a second write with the same token and another value is refused. So everyone
who read the same version writes with the same token: the first wins, the others read what it wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from emberpool_proxy.aws import SecretVersion
from emberpool_proxy.errors import CertificateUnusable, SecretAlreadyWritten
from emberpool_proxy.log import logger
from emberpool_proxy.tls.authority import utc_now
from emberpool_proxy.tls.generations import Generations, from_secret, renewed, to_secret

ROUNDS = 8
# A read right after a write may still give the version before it.
SHORTEST_SETTLE_SECONDS, LONGEST_SETTLE_SECONDS = 0.05, 2.0


class Secrets(Protocol):
    """The part of aws.AwsCalls that is needed here."""

    async def read_secret(self, arn: str) -> SecretVersion:
        """Return what AWSCURRENT is now."""
        ...

    async def put_secret(self, arn: str, value: str, request_token: str) -> None:
        """Write a version once; another value with the same token raises SecretAlreadyWritten."""
        ...


class SharedAuthority:
    """The generations of the CA in the secret `arn`, made there when it is empty or when the last one nears its end."""

    def __init__(self, secrets: Secrets, arn: str, now: Callable[[], datetime] = utc_now) -> None:
        self._secrets = secrets
        self._arn = arn
        self._now = now

    async def load(self) -> Generations:
        """Return the generations that all tasks share.

        Raises SecretUnreadable, and CertificateUnusable when the secret holds something else.
        """
        settle_seconds = SHORTEST_SETTLE_SECONDS
        for _ in range(ROUNDS):
            read = await self._secrets.read_secret(self._arn)
            found = from_secret(read.text, f"the secret {self._arn}")
            wanted = renewed(found, self._now())
            if wanted is None:
                return found
            # Whether it was us or another task: what counts is what can be read afterwards.
            await self._write(read.version_id, wanted)
            await asyncio.sleep(settle_seconds * random.uniform(0.5, 1))  # noqa: S311 (spreads the tasks)
            settle_seconds = min(LONGEST_SETTLE_SECONDS, settle_seconds * 2)
        raise CertificateUnusable(
            f"the secret {self._arn} was written, but reads as before; if its version was restored by hand, write "
            "another value into it"
        )

    async def _write(self, version_id: str, wanted: Generations) -> None:
        token = hashlib.sha256(f"emberpool CA after {version_id}".encode()).hexdigest()
        try:
            await self._secrets.put_secret(self._arn, to_secret(wanted), token)
        except SecretAlreadyWritten:
            return
        ends = wanted[-1].not_after
        logger.info(
            "made the deployment's CA, number %d, valid until %s, in the secret %s", len(wanted), ends, self._arn
        )


class OwnAuthority:
    """A CA of this task alone, for local use. `kept` is what `to_keep` of an agent before this one returned."""

    def __init__(self, now: Callable[[], datetime] = utc_now, kept: str = "") -> None:
        self._now = now
        self._generations: Generations = from_secret(kept, "the CA that was kept") if kept else ()

    def to_keep(self) -> str:
        """Return what the next agent of this task needs, so that clients need not learn another CA. A secret."""
        return to_secret(self._generations) if self._generations else ""

    async def load(self) -> Generations:
        """Return the generations."""
        self._generations = renewed(self._generations, self._now()) or self._generations
        return self._generations
