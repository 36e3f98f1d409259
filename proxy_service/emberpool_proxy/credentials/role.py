"""One role of the pool in the database: which login it uses, and which it should use now.

A secret can be ahead of the database or behind it while it is rotated, so what counts is what the database accepts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from emberpool_proxy.credentials.probe import Verdict
from emberpool_proxy.credentials.role_sources import RoleSource
from emberpool_proxy.credentials.snapshot import Login
from emberpool_proxy.errors import ProxyError

Probe = Callable[[Login], Awaitable[Verdict]]


@dataclass(frozen=True)
class Outcome:
    """What a look at a role found. `verdict` is of the login in use; None: nothing was asked."""

    is_changed: bool
    verdict: Verdict | None = None


class Role:
    """The login of one [databases] entry or several; `load()` comes first. Raises what its source raises."""

    def __init__(self, source: RoleSource, probe: Probe) -> None:
        self.source = source
        self._probe = probe
        self._in_use: Login | None = None
        self._first_seen: Login | None = None  # what the source named first at the last look
        self._logins: dict[str, str] = {}

    @property
    def user(self) -> str:
        """The role that new clients get."""
        return self._login.user

    @property
    def logins(self) -> dict[str, str]:
        """Passwords by role: the one in use and, where users alternate, the ones before it."""
        return dict(self._logins)

    async def load(self) -> None:
        """Read the source for the first time; the database is asked only if there is a choice."""
        found = await self.source.read()
        self._first_seen = found[0]
        login, _ = (found[0], None) if len(found) == 1 else await self._first_accepted(found)
        self._use(login, found)

    async def check(self) -> Outcome:
        """Look whether the source has changed; a new login is proven before it is used, if another works."""
        found = await self.source.read()
        first, is_new = found[0], found[0] != self._first_seen
        self._first_seen = first
        if not is_new or first == self._in_use:
            # While a rotation is under way the one in use is AWSPENDING's: AWSCURRENT is still the old one.
            return Outcome(is_changed=self._remember(found))
        if self.source.makes_new_logins:
            return Outcome(is_changed=self._use(first, found))
        login, verdict = await self._first_accepted([first, self._login])
        return Outcome(is_changed=self._use(login, found), verdict=verdict)

    async def prove(self) -> Verdict:
        """Ask the database whether it accepts the login in use."""
        return await self._probe(self._login)

    async def mend(self, user: str) -> Outcome:
        """Find the login that the database accepts, after it refused `user`, one of `logins`."""
        try:
            found = await self.source.read()
        except ProxyError:
            # Perhaps nothing is wrong but the source: then what is known goes on.
            if (verdict := await self.prove()) is Verdict.REFUSED:
                raise
            return Outcome(is_changed=False, verdict=verdict)
        if user != self.user:
            return await self._mend_earlier(user, found)
        self._first_seen = found[0]
        candidates = found if self.source.makes_new_logins else [*found, self._login]
        login, verdict = await self._first_accepted(list(dict.fromkeys(candidates)))
        if verdict is not Verdict.ACCEPTED and (verdict is not Verdict.REFUSED or self._login in found):
            login = self._login  # nothing is known to be better
        return Outcome(is_changed=self._use(login, found), verdict=verdict)

    async def _mend_earlier(self, user: str, found: list[Login]) -> Outcome:
        # Only clients from before a change of roles are left in its pool.
        candidates = dict.fromkeys([*found, Login(user, self._logins.get(user, ""))])
        login, verdict = await self._first_accepted([login for login in candidates if login.user == user])
        is_changed = verdict is Verdict.ACCEPTED and self._logins.get(user) != login.password
        if is_changed:
            self._logins[user] = login.password
        return Outcome(is_changed=is_changed, verdict=verdict)

    @property
    def _login(self) -> Login:
        if self._in_use is None:
            raise RuntimeError("load() comes first")
        return self._in_use

    async def _first_accepted(self, candidates: list[Login]) -> tuple[Login, Verdict]:
        """Return the login to use and what the database said to it; the first one when it took none."""
        verdicts = []
        for candidate in candidates:
            verdict = await self._probe(candidate)
            if verdict is Verdict.ACCEPTED:
                return candidate, verdict
            if verdict is Verdict.AWAY:
                # It would say the same to the others, after as long a wait.
                return candidates[0], verdict
            verdicts.append(verdict)
        return candidates[0], Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts else Verdict.REFUSED

    def _use(self, login: Login, found: list[Login]) -> bool:
        is_changed = login != self._in_use
        self._in_use = login
        return self._remember(found) or is_changed

    def _remember(self, found: list[Login]) -> bool:
        before = dict(self._logins)
        for login in reversed(found):
            # A client that logged in under an earlier role keeps that role's pool. Its password is not replaced here:
            # AWSPENDING may be ahead of the database.
            self._logins.setdefault(login.user, login.password)
        self._logins[self._login.user] = self._login.password
        return self._logins != before
