"""When to look at a role's login: on a schedule, when it ages, and at once when PgBouncer was refused with it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from emberpool_proxy.credentials.probe import Verdict
from emberpool_proxy.credentials.role import Outcome, Role
from emberpool_proxy.errors import ProxyError
from emberpool_proxy.log import logger

# A wrong password must neither lock the role nor hammer Secrets Manager: 0.5, 1, 2, … 30 s between two tries.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
PROOF_SECONDS = 0.05  # several pools wake at once: one proof is enough for all
QUIET_SECONDS = 60.0  # without a failed login for so long, the next one is looked at at once again
JITTER = 0.1  # the tasks of a fleet should not ask at the same moment

Publish = Callable[[], Awaitable[None]]


class LoginHold(Protocol):
    """Keeps clients waiting while a login is being mended. Both calls may come twice."""

    async def hold(self, entries: frozenset[str]) -> None:
        """Let the clients of these entries wait rather than fail: the database refuses their role."""
        ...

    async def release(self, entries: frozenset[str]) -> None:
        """Let PgBouncer go on: the login works again, or waiting longer is no use."""
        ...


class Pause:
    """A pause that doubles at each failure and is the first one again after a success."""

    def __init__(self, first: float = FIRST_PAUSE_SECONDS, longest: float = LONGEST_PAUSE_SECONDS) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        return seconds

    def reset(self) -> None:
        """Forget the failures."""
        self._next = self._first


class RoleWatch:
    """Watches one role. `hold_seconds` bounds how long clients wait for a mended login before they hear why."""

    def __init__(
        self, role: Role, entries: frozenset[str], check_seconds: float, hold: LoginHold | None, hold_seconds: float
    ) -> None:
        self.role = role
        self.entries = entries
        self._check_seconds = check_seconds
        self._hold = hold
        self._hold_seconds = hold_seconds
        self._failed_user = ""
        self._woken = asyncio.Event()
        self._pause = Pause()
        self._mended_at = -QUIET_SECONDS
        self._is_source_failing = False
        self._is_refused = False  # the login in use; while it is being mended
        self._proven_at = float("-inf")
        self._proving = asyncio.Lock()

    async def prove(self) -> Verdict:
        """Say whether the database accepts the login in use; a refused one is mended meanwhile."""
        async with self._proving:
            if self._is_refused:
                return Verdict.REFUSED  # one login after another would lock the role
            if time.monotonic() - self._proven_at <= PROOF_SECONDS:
                return Verdict.ACCEPTED
            verdict = await self.role.prove()
            if verdict is Verdict.ACCEPTED:
                self._proven_at = time.monotonic()
            elif verdict is Verdict.REFUSED:
                self._is_refused = True
                self.login_failed(self.role.user)
            return verdict

    def login_failed(self, user: str) -> None:
        """Look at once: the database refused `user`, one of the role's logins."""
        self._failed_user = user
        self._woken.set()

    async def run(self, publish: Publish) -> None:
        """Keep the role's login right until cancelled; `publish` is awaited after every change."""
        while True:
            try:
                async with asyncio.timeout(self._seconds_to_next_look()):
                    await self._woken.wait()
            except TimeoutError:
                await self._check(publish)
            else:
                await self._mend(publish)

    def _seconds_to_next_look(self) -> float:
        seconds = min(self._check_seconds, self.role.source.longest_trust_seconds or self._check_seconds)
        if self._is_source_failing:
            return min(self._pause.next(), seconds)
        return seconds * random.uniform(1 - JITTER, 1)  # noqa: S311 (no secret)

    async def _check(self, publish: Publish) -> None:
        outcome = await self._look(self.role.check())
        if outcome is None:
            return
        self._pause.reset()
        if outcome.is_changed:
            logger.info("the pool's login at the database is a new one", extra=self._fields())
            await publish()

    async def _mend(self, publish: Publish) -> None:
        """Try until the database accepts a login, or cannot be asked. Clients wait, for `hold_seconds` at most."""
        now = time.monotonic()
        if now - self._mended_at > QUIET_SECONDS:
            self._pause.reset()
        hold_until = now + self._hold_seconds
        is_told = False
        await self._set_hold(is_held=True)
        try:
            while True:
                outcome = await self._look(self.role.mend(self._failed_user))
                self._woken.clear()
                if outcome and outcome.is_changed:
                    await publish()
                    await self._set_hold(is_held=True)  # RELOAD has ended it
                if outcome and outcome.verdict is not Verdict.REFUSED:
                    self._is_refused = False
                    self._tell_mended(outcome)
                    break
                self._is_refused = True
                if not is_told:
                    self._tell_refused()
                    is_told = True
                await self._wait_out(hold_until)
        finally:
            await self._set_hold(is_held=False)
            self._mended_at = time.monotonic()
        # What PgBouncer logged meanwhile was about the login before; and a failure of another kind would come again
        # and again, at ever longer pauses.
        await asyncio.sleep(self._pause.next())

    async def _wait_out(self, hold_until: float) -> None:
        pause, left = self._pause.next(), hold_until - time.monotonic()
        if pause >= left:
            await asyncio.sleep(max(left, 0))
            await self._set_hold(is_held=False)
            pause -= max(left, 0)
        await asyncio.sleep(pause)

    async def _look(self, looking: Awaitable[Outcome]) -> Outcome | None:
        try:
            outcome = await looking
        except ProxyError as error:
            if not self._is_source_failing:
                logger.error("%s; the login that is known stays in use", error)
            self._is_source_failing = True
            return None
        self._is_source_failing = False
        return outcome

    async def _set_hold(self, *, is_held: bool) -> None:
        if self._hold:
            await (self._hold.hold(self.entries) if is_held else self._hold.release(self.entries))

    def _tell_mended(self, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.ACCEPTED and outcome.is_changed:
            logger.info("the database refused the pool's login and accepts a newer one", extra=self._fields())
        elif outcome.verdict is Verdict.UNKNOWN:
            logger.error("the database refuses the pool, but not for its password", extra=self._fields())

    def _tell_refused(self) -> None:
        logger.error(
            "the database refuses the pool's login, and no other is known: mend the password at its source or in the "
            "database; it is tried again at growing pauses",
            extra=self._fields(),
        )

    def _fields(self) -> dict[str, object]:
        return {
            "fields": {
                "role": self.role.user,
                "login_from": self.role.source.description,
                "entries": sorted(self.entries),
            }
        }
