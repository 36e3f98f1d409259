"""What the layer reads from the function's environment: names, defaults and ranges.

Owns the one table of `EMBERPOOL_*` variables of the function side. `emberpool_cdk` imports it to write them,
so only the standard library is imported here. Opens nothing and reads no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "EMBERPOOL_"
HOST = "EMBERPOOL_HOST"
PORT = "EMBERPOOL_PORT"
DATABASE = "EMBERPOOL_DATABASE"
USER = "EMBERPOOL_USER"
PASSWORD = "EMBERPOOL_PASSWORD"  # noqa: S105 (the variable's name)
SECRET_ARN = "EMBERPOOL_SECRET_ARN"  # noqa: S105 (the variable's name)
SSLMODE = "EMBERPOOL_SSLMODE"
SSLROOTCERT = "EMBERPOOL_SSLROOTCERT"
CONNECT_TIMEOUT_SECONDS = "EMBERPOOL_CONNECT_TIMEOUT_SECONDS"
ADDRESS_TIMEOUT_SECONDS = "EMBERPOOL_ADDRESS_TIMEOUT_SECONDS"
CONNECT_RETRY_SECONDS = "EMBERPOOL_CONNECT_RETRY_SECONDS"
DEADLINE_MARGIN_MS = "EMBERPOOL_DEADLINE_MARGIN_MS"
METRICS = "EMBERPOOL_METRICS"
AUTH = "EMBERPOOL_AUTH"
CLOSE_ON_SHUTDOWN = "EMBERPOOL_CLOSE_ON_SHUTDOWN"
DATA_ENDPOINT = "EMBERPOOL_DATA_ENDPOINT"

DATABASE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
URL = re.compile(r"(https?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?/?")
THIS_MACHINE = re.compile(r"localhost|127\.[0-9.]+|\[::1\]")
DEFAULT_PORT = 6432  # PgBouncer's own
SSLMODES = ("disable", "require", "verify-ca", "verify-full")
AUTHS = ("password", "iam")
SWITCH = ("on", "off")
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
        default=None,
        metadata=_help("secret in Secrets Manager, JSON with `username`, `password` and the proxy's `ca_certificate`"),
    )
    password: str | None = field(default=None, metadata=_help("the password itself, for local use"))
    sslmode: str = field(default="verify-full", metadata=_help(f"one of {', '.join(SSLMODES)}"))
    sslrootcert: str | None = field(
        default=None, metadata=_help("file with the CA's certificate for the verify modes; empty: the secret has it")
    )
    connect_timeout_seconds: int = field(default=3, metadata=_help("longest wait for a connection to open"))
    address_timeout_seconds: float = field(
        default=0.5,
        metadata=_help("longest wait for one of several addresses to accept; the login there may take longer"),
    )
    connect_retry_seconds: float = field(
        default=3.0, metadata=_help("how long a connection that cannot be opened is tried again; 0: once")
    )
    deadline_margin_ms: int = field(
        default=200, metadata=_help("time kept for the handler's own end when a statement is cancelled")
    )
    auth: str = field(
        default="password", metadata=_help("`iam`: an RDS IAM token, made by the function's role, is the password")
    )
    close_on_shutdown: str = field(
        default="on", metadata=_help("`off`: Lambda ends the environment without closing its connection")
    )
    metrics: str = field(default="on", metadata=_help("`off`: no metrics; log lines follow the log level"))

    pipeline_begin: str = field(
        default="off", metadata=_help("on: BEGIN rides with the first statement; saves a round trip, costs CPU")
    )
    data_endpoint: str | None = field(
        default=None,
        metadata=_help("URL of the data endpoint for `data_client()`, https://HOST:PORT; http on this machine only"),
    )
    # Which of several databases this is: its variables are EMBERPOOL_<NAME>_HOST and so on.
    name: str | None = field(default=None, metadata=_help("(no variable: the decorator's `database`)"))

    def __post_init__(self) -> None:
        for field_name in ("host", "user", "database"):
            if not getattr(self, field_name):
                raise SettingsInvalid(f"{self.variable(field_name)} must be set")
        self._check_data_endpoint()
        self._check_range("port", 1, 65535)
        self._check_range("connect_timeout_seconds", SHORTEST_CONNECT_TIMEOUT_SECONDS, 60)
        self._check_range("address_timeout_seconds", 0.05, 60)
        self._check_range("connect_retry_seconds", 0, 900)
        self._check_range("deadline_margin_ms", 0, 60_000)
        self._check_choice("metrics", SWITCH)
        self._check_choice("pipeline_begin", SWITCH)
        self._check_choice("close_on_shutdown", SWITCH)
        self._check_choice("auth", AUTHS)
        self._check_choice("sslmode", SSLMODES)
        if self.verifies and not self.sslrootcert and (self.secret_arn is None or self.auth == "iam"):
            raise SettingsInvalid(
                f"{self.variable('sslrootcert')} must name the CA's file when {self.variable('sslmode')} is "
                f"{self.sslmode} and no secret has it; use require to encrypt without verifying"
            )
        self._check_credentials()

    @property
    def verifies(self) -> bool:
        """Whether the server's certificate is verified."""
        return self.sslmode.startswith("verify-")

    def _check_credentials(self) -> None:
        if self.auth == "iam":
            # A secret may be there all the same: a named database inherits it and cannot unset it.
            if self.sslmode == "disable":
                raise SettingsInvalid(
                    f"{self.variable('sslmode')} must not be disable when {self.variable('auth')} is iam: "
                    "RDS takes IAM tokens over TLS only"
                )
            return
        if (self.password is None) == (self.secret_arn is None):
            raise SettingsInvalid(
                f"set exactly one of {self.variable('secret_arn')} (Secrets Manager) and "
                f"{self.variable('password')} (local use), got {'both' if self.password else 'neither'}"
            )

    def _check_data_endpoint(self) -> None:
        if self.data_endpoint is None:
            return
        found = URL.fullmatch(self.data_endpoint)
        if found is None:
            raise SettingsInvalid(
                f"{self.variable('data_endpoint')} must be https://HOST:PORT without a path, got {self.data_endpoint!r}"
            )
        if found[1] == "http" and not THIS_MACHINE.fullmatch(found[2]):
            raise SettingsInvalid(
                f"{self.variable('data_endpoint')} must begin with https:// for another machine than this, "
                f"got {self.data_endpoint!r}"
            )

    def _check_choice(self, field_name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, field_name)
        if value not in allowed:
            raise SettingsInvalid(f"{self.variable(field_name)} must be one of {', '.join(allowed)}, got {value!r}")

    def _check_range(self, field_name: str, lowest: float, highest: float) -> None:
        value = getattr(self, field_name)
        if not lowest <= value <= highest:
            raise SettingsInvalid(f"{self.variable(field_name)} must be between {lowest} and {highest}, got {value}")

    def variable(self, field_name: str) -> str:
        """Return the environment variable of a field."""
        return variable(field_name, self.name)

    def __repr__(self) -> str:
        """Show every field but the password: settings end up in logs and tracebacks."""
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "password")
        return f"LayerSettings({shown})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, name: str | None = None) -> LayerSettings:
        """Read the settings from `environment` (default: this process's).

        With a `name` each variable is EMBERPOOL_<NAME>_<FIELD>, and what is not set there is EMBERPOOL_<FIELD>; only
        its host must be its own. Raises SettingsInvalid when a variable is missing or malformed.
        """
        env = os.environ if environment is None else environment
        if name is not None and not (DATABASE_NAME.fullmatch(name) and env.get(variable("host", name))):
            raise SettingsInvalid(
                f"the database {name!r} needs {variable('host', name)}; names are letters, digits and underscores"
            )
        given: dict[str, Any] = {"host": "", "user": "", "name": name}
        for f in fields(cls):
            if f.name == "name":
                continue
            for used in (variable(f.name, name), variable(f.name)):
                if raw := env.get(used):
                    given[f.name] = _converted(used, raw, str(f.type))
                    break
        return cls(**given)


def variable(field_name: str, database: str | None = None) -> str:
    """Return the environment variable of a field of LayerSettings, of a named database or of the only one."""
    return PREFIX + (f"{database.upper()}_" if database else "") + field_name.upper()


def _converted(name: str, raw: str, kind: str) -> str | int | float:
    try:
        if kind == "int":
            return int(raw)
        return float(raw) if kind == "float" else raw
    except ValueError:
        number = "whole number" if kind == "int" else "number"
        raise SettingsInvalid(f"{name} must be a {number}, got {raw!r}") from None
