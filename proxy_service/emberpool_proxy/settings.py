"""What the proxy reads from its container's environment: names, defaults and ranges.

Owns the one table of `EMBERPOOL_PROXY_*` variables. `emberpool_cdk` imports it to write them into the task
definition, so only the standard library is imported here. Opens nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "EMBERPOOL_PROXY_"

CLIENT_PORT = 6432  # PgBouncer's own
HEALTH_PORT = 8080
SERVER_TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
CLIENT_TLS_MODES = ("require", "disable")
# PgBouncer's ini has no escape for these, and every name of ours goes into it.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$-]*")
HOST_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
RESERVED_NAMES = ("pgbouncer", "emberpool_agent")
LONGEST_SERVER_PASSWORD_BYTES = 2047  # PgBouncer 1.24 and 1.25 fail on longer ones


class SettingsInvalid(ValueError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """A setting is missing, unknown or out of range: mend the environment variable that it names."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class ProxySettings:
    """Everything that the proxy can be told; each field is the variable EMBERPOOL_PROXY_<FIELD>.

    Seconds and counts carry their unit in the name. Raises SettingsInvalid with the variable, the value seen and
    the allowed range. Secrets never appear in the repr.
    """

    database_host: str = field(metadata=_help("host name of the PostgreSQL server"))
    database_name: str = field(metadata=_help("database that clients connect to"))
    database_user: str = field(metadata=_help("role that the pool uses in the database"))
    database_password: str = field(repr=False, metadata=_help("password of database_user"))
    client_user: str = field(metadata=_help("user that functions log in with at the proxy"))
    client_password: str = field(repr=False, metadata=_help("password of client_user"))
    database_port: int = field(default=5432, metadata=_help("port of the PostgreSQL server"))
    server_tls_mode: str = field(default="verify-full", metadata=_help("TLS to the database"))
    server_tls_ca_file: str = field(default="", metadata=_help("CA bundle for the database; empty: the system's"))
    listen_host: str = field(default="0.0.0.0", metadata=_help("address to listen on"))  # noqa: S104 (a task's own)
    client_port: int = field(default=CLIENT_PORT, metadata=_help("port for functions"))
    health_port: int = field(default=HEALTH_PORT, metadata=_help("port of /healthz and /readyz"))
    client_tls_mode: str = field(default="require", metadata=_help("TLS to clients"))
    client_tls_cert_file: str = field(default="", metadata=_help("certificate; empty: self-signed at start"))
    client_tls_key_file: str = field(default="", metadata=_help("private key of the certificate"))
    max_server_connections: int = field(default=20, metadata=_help("this task's share of the budget"))
    max_client_connections: int = field(default=8000, metadata=_help("functions that may be connected"))
    query_wait_seconds: float = field(default=10.0, metadata=_help("longest wait for a server connection"))
    drain_seconds: float = field(default=20.0, metadata=_help("time for clients to leave before shutdown"))
    stop_seconds: float = field(default=110.0, metadata=_help("the whole of a stop; below ECS's stopTimeout"))
    run_folder: str = field(default="/run/emberpool", metadata=_help("rendered files and sockets; a tmpfs"))
    pgbouncer_path: str = field(default="pgbouncer", metadata=_help("the PgBouncer program"))
    run_as_user: str = field(default="nobody", metadata=_help("user for PgBouncer when started as root"))
    log_level: str = field(default="INFO", metadata=_help("DEBUG, INFO, WARNING or ERROR"))

    def __post_init__(self) -> None:
        for name in ("database_name", "database_user", "client_user", "run_as_user"):
            _check_pattern(name, getattr(self, name), PLAIN_NAME)
        for name in ("database_host", "listen_host"):
            _check_pattern(name, getattr(self, name), HOST_NAME)
        for name in ("database_port", "client_port", "health_port"):
            _check_range(name, getattr(self, name), 1, 65535)
        _check_range("max_server_connections", self.max_server_connections, 1, 10_000)
        _check_range("max_client_connections", self.max_client_connections, 1, 100_000)
        _check_range("query_wait_seconds", self.query_wait_seconds, 0.5, 900)
        _check_range("drain_seconds", self.drain_seconds, 0, 110)
        _check_range("stop_seconds", self.stop_seconds, 1, 115)
        _check_choice("server_tls_mode", self.server_tls_mode, SERVER_TLS_MODES)
        _check_choice("client_tls_mode", self.client_tls_mode, CLIENT_TLS_MODES)
        _check_choice("log_level", self.log_level, ("DEBUG", "INFO", "WARNING", "ERROR"))
        self._check_secrets()
        self._check_together()

    def _check_secrets(self) -> None:
        for name in ("database_password", "client_password"):
            value = getattr(self, name)
            if not value or not value.isascii() or not value.isprintable():
                raise SettingsInvalid(
                    f"{variable(name)} must be set and hold printable ASCII only (its value is not shown)"
                )
        if len(self.database_password.encode()) > LONGEST_SERVER_PASSWORD_BYTES:
            raise SettingsInvalid(
                f"{variable('database_password')} must have at most {LONGEST_SERVER_PASSWORD_BYTES} bytes, "
                f"got {len(self.database_password.encode())}: PgBouncer cannot send longer ones"
            )

    def _check_together(self) -> None:
        if self.client_user == self.database_user:
            raise SettingsInvalid(
                f"{variable('client_user')} must differ from {variable('database_user')}, got {self.client_user!r} "
                "for both: the database's own user never logs in at the proxy"
            )
        if self.database_name in RESERVED_NAMES or self.client_user in RESERVED_NAMES:
            raise SettingsInvalid(
                f"{variable('database_name')} and {variable('client_user')} must not be one of "
                f"{', '.join(RESERVED_NAMES)}: those are the admin console's"
            )
        if self.client_port == self.health_port:
            raise SettingsInvalid(
                f"{variable('client_port')} and {variable('health_port')} must differ, got {self.client_port}"
            )
        if bool(self.client_tls_cert_file) != bool(self.client_tls_key_file):
            raise SettingsInvalid(
                f"set both or none of {variable('client_tls_cert_file')} and {variable('client_tls_key_file')}"
            )
        if self.drain_seconds >= self.stop_seconds:
            raise SettingsInvalid(
                f"{variable('drain_seconds')} must be below {variable('stop_seconds')} ({self.stop_seconds}), "
                f"got {self.drain_seconds}"
            )

    @property
    def run_path(self) -> Path:
        """The run folder as a path."""
        return Path(self.run_folder)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ProxySettings:
        """Read the settings from `environment` (default: this process's).

        Raises SettingsInvalid for a missing, malformed or unknown EMBERPOOL_PROXY_ variable.
        """
        env = os.environ if environment is None else environment
        known = {variable(f.name): f for f in fields(cls)}
        unknown = sorted(name for name in env if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise SettingsInvalid(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        given: dict[str, Any] = {}
        for name, f in known.items():
            raw = env.get(name)
            if raw is None or raw == "":
                if f.default is MISSING:
                    raise SettingsInvalid(f"{name} must be set: {f.metadata['help']}")
                continue
            given[f.name] = _converted(name, raw, {"int": int, "float": float, "str": str}[str(f.type)])
        return cls(**given)


def variable(field_name: str) -> str:
    """Return the environment variable of a field of ProxySettings."""
    return PREFIX + field_name.upper()


def _converted(name: str, raw: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(raw)
    except ValueError:
        kind = "a whole number" if convert is int else "a number"
        raise SettingsInvalid(f"{name} must be {kind}, got {raw!r}") from None


def _check_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise SettingsInvalid(f"{variable(name)} must be between {lowest} and {highest}, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsInvalid(f"{variable(name)} must be one of {', '.join(choices)}, got {value!r}")


def _check_pattern(name: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise SettingsInvalid(f"{variable(name)} must match {pattern.pattern}, got {value!r}")
