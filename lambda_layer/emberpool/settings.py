"""What the layer reads from the function's environment: names, defaults and ranges.

Owns the one table of `EMBERPOOL_*` variables of the function side. `emberpool_cdk` imports it to write them,
so only the standard library is imported here. Opens nothing and reads no secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

HOST = "EMBERPOOL_HOST"
PORT = "EMBERPOOL_PORT"
DATABASE = "EMBERPOOL_DATABASE"
USER = "EMBERPOOL_USER"
PASSWORD = "EMBERPOOL_PASSWORD"  # noqa: S105 (the variable's name)
SECRET_ARN = "EMBERPOOL_SECRET_ARN"  # noqa: S105 (the variable's name)
SSLMODE = "EMBERPOOL_SSLMODE"
SSLROOTCERT = "EMBERPOOL_SSLROOTCERT"
CONNECT_TIMEOUT_SECONDS = "EMBERPOOL_CONNECT_TIMEOUT_SECONDS"
DEADLINE_MARGIN_MS = "EMBERPOOL_DEADLINE_MARGIN_MS"

DEFAULT_PORT = 6432  # PgBouncer's own
SSLMODES = ("disable", "require", "verify-ca", "verify-full")
# libpq rounds anything shorter up to two seconds.
SHORTEST_CONNECT_TIMEOUT_SECONDS = 2


class SettingsInvalid(ValueError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """A setting is missing, unknown or out of range: mend the environment variable that it names."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class LayerSettings:
    """Where the layer connects and how long it may take. Durations carry their unit in the name.

    Raises SettingsInvalid for a value that is out of range, naming the variable, the value and the range.
    """

    host: str = field(metadata=_help("host name of the proxy"))
    user: str = field(metadata=_help("user at the proxy; the secret's `username` wins over it"))
    database: str = field(default="postgres", metadata=_help("database behind the proxy"))
    port: int = field(default=DEFAULT_PORT, metadata=_help("port of the proxy"))
    secret_arn: str | None = field(
        default=None, metadata=_help("secret in Secrets Manager, JSON with `username` and `password`")
    )
    password: str | None = field(default=None, metadata=_help("the password itself, for local use"))
    sslmode: str = field(default="verify-full", metadata=_help(f"one of {', '.join(SSLMODES)}"))
    sslrootcert: str | None = field(
        default=None, metadata=_help("file with the CA's certificate; needed by the verify modes")
    )
    connect_timeout_seconds: int = field(default=3, metadata=_help("longest wait for a connection to open"))
    deadline_margin_ms: int = field(
        default=200, metadata=_help("time kept for the handler's own end when a statement is cancelled")
    )

    def __post_init__(self) -> None:
        for name, value in ((HOST, self.host), (USER, self.user), (DATABASE, self.database)):
            if not value:
                raise SettingsInvalid(f"{name} must be set")
        _check_range(PORT, self.port, 1, 65535)
        _check_range(CONNECT_TIMEOUT_SECONDS, self.connect_timeout_seconds, SHORTEST_CONNECT_TIMEOUT_SECONDS, 60)
        _check_range(DEADLINE_MARGIN_MS, self.deadline_margin_ms, 0, 60_000)
        if self.sslmode not in SSLMODES:
            raise SettingsInvalid(f"{SSLMODE} must be one of {', '.join(SSLMODES)}, got {self.sslmode!r}")
        if self.sslmode.startswith("verify-") and not self.sslrootcert:
            raise SettingsInvalid(
                f"{SSLROOTCERT} must name the CA's file when {SSLMODE} is {self.sslmode}; "
                "use require to encrypt without verifying"
            )
        if (self.password is None) == (self.secret_arn is None):
            raise SettingsInvalid(
                f"set exactly one of {SECRET_ARN} (Secrets Manager) and {PASSWORD} (local use), "
                f"got {'both' if self.password else 'neither'}"
            )

    def __repr__(self) -> str:
        """Show every field but the password: settings end up in logs and tracebacks."""
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "password")
        return f"LayerSettings({shown})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> LayerSettings:
        """Read the settings from `environment` (default: this process's).

        Raises SettingsInvalid when a variable is missing or malformed.
        """
        env = os.environ if environment is None else environment
        return cls(
            host=env.get(HOST, ""),
            user=env.get(USER, ""),
            database=env.get(DATABASE, cls.database),
            port=_integer(env, PORT, cls.port),
            secret_arn=env.get(SECRET_ARN) or None,
            password=env.get(PASSWORD) or None,
            sslmode=env.get(SSLMODE, cls.sslmode),
            sslrootcert=env.get(SSLROOTCERT) or None,
            connect_timeout_seconds=_integer(env, CONNECT_TIMEOUT_SECONDS, cls.connect_timeout_seconds),
            deadline_margin_ms=_integer(env, DEADLINE_MARGIN_MS, cls.deadline_margin_ms),
        )


def _integer(env: Mapping[str, str], name: str, default: int) -> int:
    raw = env.get(name)
    if raw is None or raw == "":
        return default
    try:
        return int(raw)
    except ValueError:
        raise SettingsInvalid(f"{name} must be a whole number, got {raw!r}") from None


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise SettingsInvalid(f"{name} must be between {lowest} and {highest}, got {value}")
