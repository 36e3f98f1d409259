"""Where the password comes from: the environment (local use) or Secrets Manager, kept until a login fails."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from emberpool.errors import SecretUnavailable
from emberpool.settings import LayerSettings

SECRET_TIMEOUT_SECONDS = 3


@dataclass(frozen=True)
class Login:
    """A user and its password; the password never appears in the repr."""

    user: str
    password: str = field(repr=False)


class Credentials:
    """The login for `settings`. Opens nothing until `login()` is called."""

    def __init__(self, settings: LayerSettings) -> None:
        self._settings = settings
        self._cached: Login | None = None

    @property
    def can_change(self) -> bool:
        """Whether reading again may give another password."""
        return self._settings.secret_arn is not None

    def login(self) -> Login:
        """Return the login, read once and kept. Raises SecretUnavailable."""
        if self._cached is None:
            self._cached = self._read()
        return self._cached

    def forget(self) -> None:
        """Read the secret again at the next login: the password was refused."""
        self._cached = None

    def _read(self) -> Login:
        settings = self._settings
        if settings.secret_arn is None:
            return Login(settings.user, settings.password or "")
        # From None, and only the error's own name: a response or a cause may carry the secret.
        try:
            secret = json.loads(_secret_string(settings.secret_arn))
        except ValueError:
            raise SecretUnavailable(f"the secret {settings.secret_arn} does not hold JSON") from None
        if not isinstance(secret, dict) or not isinstance(secret.get("password"), str):
            raise SecretUnavailable(f"the secret {settings.secret_arn} has no member 'password'") from None
        return Login(str(secret.get("username") or settings.user), secret["password"])


def _secret_string(secret_arn: str) -> str:
    # Imported here: a fifth of a second that a function with another source of credentials does not pay.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    config = Config(
        connect_timeout=SECRET_TIMEOUT_SECONDS, read_timeout=SECRET_TIMEOUT_SECONDS, retries={"mode": "standard"}
    )
    try:
        client: Any = boto3.client("secretsmanager", config=config)
        return str(client.get_secret_value(SecretId=secret_arn)["SecretString"])
    except (BotoCoreError, ClientError, KeyError) as error:
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        raise SecretUnavailable(
            f"cannot read the secret {secret_arn}: {code}; the function's role needs secretsmanager:GetSecretValue "
            "on it and a way to Secrets Manager (an interface endpoint or NAT in its VPC)"
        ) from None
