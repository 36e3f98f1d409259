"""The login of this environment: read once, kept until it expires or is refused, and what to try after that.

Owns the caching and the order of the attempts. Where the text of a secret comes from is `secret_sources`' business.
Not locked: two threads at once may read twice, nothing worse. Needs no driver, as data_client() has none: the errors,
which are psycopg's, are loaded when one is raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import emberpool
from emberpool import secret_sources
from emberpool.settings import LayerSettings

AWSCURRENT, AWSPENDING = "AWSCURRENT", "AWSPENDING"
# A storm of refused logins must not become a storm on Secrets Manager: what was read this recently is believed.
SHORTEST_REFETCH_SECONDS = 1.0
TOKEN_TRUSTED_SECONDS = secret_sources.TOKEN_SECONDS - 90  # one that expires while it is on its way is refused


@dataclass(frozen=True)
class Login:
    """A user and its password, and the CA by which their secret's owner is verified (PEM), if the secret has it.

    The password never appears in the repr.
    """

    user: str
    password: str = field(repr=False)
    ca_certificate: str | None = field(default=None, repr=False)


class Credentials:
    """The login for `settings`. Opens nothing until `login()` is called.

    All clocks are wall clocks: they run on while the environment is frozen.
    """

    def __init__(self, settings: LayerSettings) -> None:
        self._settings = settings
        self._cached: Login | None = None
        self._made_at = 0.0
        self._refused: list[Login] = []
        # By stage: when it was read, and what it held or why it could not be read.
        self._readings: dict[str, tuple[float, Login | str]] = {}

    @property
    def is_at_hand(self) -> bool:
        """Whether `login()` answers at once, without asking anybody."""
        if self._cached is None:
            return self._settings.auth != "iam" and self._settings.secret_arn is None
        return not self._has_expired()

    def login(self) -> Login:
        """Return the login to begin an attempt with: read once and kept, an IAM token renewed before it expires.

        Raises SecretUnavailable.
        """
        self._refused.clear()
        if self._cached is None or self._has_expired():
            return self._keep(self._first())
        return self._cached

    def after_refusal(self, refused: Login) -> Login | None:
        """Return the next login to try in this attempt, None when every one was refused; call it until then.

        Reads the secret again (AWSCURRENT, then AWSPENDING), each stage at most once a second. Raises
        SecretUnavailable when AWSCURRENT cannot be read.
        """
        self._refused.append(refused)
        for candidate in self._candidates():
            if candidate not in self._refused:
                return self._keep(candidate)
        return None

    def _keep(self, login: Login) -> Login:
        self._cached = login
        return login

    def _has_expired(self) -> bool:
        return self._settings.auth == "iam" and not 0 <= time.time() - self._made_at < TOKEN_TRUSTED_SECONDS

    def _first(self) -> Login:
        settings = self._settings
        if settings.auth == "iam":
            return self._new_token()
        if settings.secret_arn is None:
            return Login(settings.user, settings.password or "")
        found = self._from_extension(settings.secret_arn)
        return self._stage(AWSCURRENT) if found is None else _login_or_raise(found)

    def _from_extension(self, secret_arn: str) -> Login | str | None:
        text = secret_sources.from_extension(secret_arn)
        return None if text is None else _login_in(text, self._settings)

    def _candidates(self) -> Iterator[Login]:
        """Yield what may be accepted now, each only read when the ones before were refused, too."""
        if self._settings.auth == "iam":
            # Once: it differs from the refused one in its time only, and in credentials that were renewed.
            if len(self._refused) == 1:
                yield self._new_token()
        elif self._settings.secret_arn is not None:
            # Not from the extension: its cache would give the refused one for minutes.
            current = self._stage(AWSCURRENT)
            yield current
            pending = self._stage_or_none(AWSPENDING)
            if pending is not None:
                # The proxy writes its CA beside the current password only.
                yield replace(pending, ca_certificate=pending.ca_certificate or current.ca_certificate)
            self._cached = current  # the next attempt begins with it again

    def _new_token(self) -> Login:
        settings = self._settings
        made_at = time.time()
        token = secret_sources.iam_token(settings.host, settings.port, settings.user)
        self._made_at = made_at  # only now: a failure leaves the old one as old as it is
        return Login(settings.user, token)

    def _stage_or_none(self, stage: str) -> Login | None:
        """Return the login at a stage that the secret need not have, and the role need not be allowed to read."""
        try:
            return self._stage(stage)
        except emberpool.SecretUnavailable:
            return None

    def _stage(self, stage: str) -> Login:
        now = time.time()
        read_at, found = self._readings.get(stage, (0.0, ""))
        if not 0 <= now - read_at < SHORTEST_REFETCH_SECONDS:
            found = self._read(stage)
            self._readings[stage] = now, found
        return _login_or_raise(found)

    def _read(self, stage: str) -> Login | str:
        settings = self._settings
        try:
            return _login_in(secret_sources.from_secrets_manager(settings.secret_arn or "", stage), settings)
        except emberpool.SecretUnavailable as error:
            return str(error)


def _login_or_raise(found: Login | str) -> Login:
    # Raised here, where neither a local variable nor a cause holds the secret's text: tracebacks are shown and sent.
    if isinstance(found, Login):
        return found
    raise emberpool.SecretUnavailable(found)


def _login_in(text: str, settings: LayerSettings) -> Login | str:
    """Return the login in a secret of RDS's form, or what is wrong with it, without showing any of it."""
    expected = f'write {{"username": ..., "password": ...}} into the secret {settings.secret_arn}, as RDS does'
    try:
        secret = json.loads(text)
    except ValueError:
        return f"the secret does not hold JSON; {expected}"
    password = secret.get("password") if isinstance(secret, dict) else None
    if not isinstance(password, str) or not password:
        return f"the secret has no member 'password'; {expected}"
    authority = secret.get("ca_certificate")
    return Login(
        str(secret.get("username") or settings.user), password, authority if isinstance(authority, str) else None
    )
