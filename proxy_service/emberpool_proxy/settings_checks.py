"""Which values the settings may have, alone and together.

Owns the ranges, the choices and the error that names the variable, the value seen and what is allowed.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emberpool_proxy.settings import ProxySettings

PREFIX = "EMBERPOOL_PROXY_"

EVERY_ADDRESS = "*"  # of this machine, IPv4 and IPv6: PgBouncer's own word
SERVER_TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
CLIENT_TLS_MODES = ("require", "disable")
# PgBouncer's ini has no escape for these, and every name of ours goes into it.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")  # PgBouncer takes no longer database names
HOST_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
PARAMETER_NAMES = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(, ?[A-Za-z_][A-Za-z0-9_.]*)*")
MEMBER = re.compile(r"[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5}")
TLS_NAME = re.compile(r"[A-Za-z0-9_.:*-]{1,253}")  # a DNS name or an address
RESERVED_NAMES = ("pgbouncer", "emberpool_agent")
# Of each task of a fleet, beside its pools': the control connection, and one login to see how the database is.
AGENT_CONNECTIONS = 2
LONGEST_SERVER_PASSWORD_BYTES = 2047  # PgBouncer 1.24 and 1.25 fail on longer ones


# (field, lowest, highest)
RANGES: tuple[tuple[str, float, float], ...] = (
    ("database_port", 1, 65535),
    ("client_port", 1, 65535),
    ("health_port", 1, 65535),
    ("database_probe_seconds", 0.05, 60),
    ("database_check_seconds", 0.1, 300),
    ("max_connections_per_client_user", 0, 100_000),
    ("credentials_check_seconds", 1, 86_400),
    ("pgbouncer_processes", 1, 32),
    ("max_server_connections", 1, 10_000),
    ("most_tasks_alive", 1, 2_000),
    ("floor_connections", 1, 1_000),
    ("reserved_connections", 0, 10_000),
    ("max_client_connections", 1, 100_000),
    ("query_wait_seconds", 0.5, 900),
    ("server_idle_seconds", 1, 86_400),
    ("query_timeout_seconds", 0, 86_400),
    ("client_login_seconds", 1, 900),
    ("idle_transaction_seconds", 0, 86_400),
    ("agent_tick_seconds", 0.1, 60),
    ("balancer_notice_seconds", 0, 100),
    ("fleet_check_seconds", 0.1, 60),
    ("drain_seconds", 0, 110),
    ("data_port", 0, 65535),
    ("data_statement_seconds", 0.1, 900),
    ("data_response_bytes", 1024, 64 * 1024 * 1024),
    ("data_request_bytes", 65_536, 64 * 1024 * 1024),
    ("data_header_seconds", 0.1, 3600),
    ("data_body_seconds", 0.1, 900),
    ("data_transaction_idle_seconds", 1, 3600),
    ("data_transaction_seconds", 1, 86_400),
    ("data_most_transactions", 0, 10_000),
    ("data_requests_per_second", 0, 1_000_000),
    ("data_most_concurrent", 1, 10_000),
    ("data_most_sessions", 1, 10_000),
    ("stop_seconds", 1, 115),
)
CHOICES = {
    "database_auth": ("password", "iam"),
    "database_must_be_writable": ("yes", "no"),
    "server_tls_mode": SERVER_TLS_MODES,
    "server_tls_unverified": ("refused", "accepted"),
    "client_tls_mode": CLIENT_TLS_MODES,
    "data_tls_mode": CLIENT_TLS_MODES,
    "reset_policy": ("tracked", "always"),
    "metrics_emf": ("on", "off"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}


class SettingsInvalid(ValueError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """A setting is missing, unknown or out of range: mend the environment variable that it names."""


def variable(field_name: str) -> str:
    """Return the environment variable of a field of ProxySettings."""
    return PREFIX + field_name.upper()


def is_loopback(host: str) -> bool:
    """Whether this is an address, or the name, of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(settings: ProxySettings) -> None:
    """Raise SettingsInvalid for the first value that is out of range, and for values that do not go together."""
    _check_pattern("database_name", settings.database_name, PLAIN_NAME)
    _check_pattern("run_as_user", settings.run_as_user, PLAIN_NAME)
    _check_pattern("budget_name", settings.budget_name, PLAIN_NAME)
    for name in ("database_user", "client_user", "budget_database"):
        if getattr(settings, name):
            _check_pattern(name, getattr(settings, name), PLAIN_NAME)
    _check_pattern("tracked_parameters", settings.tracked_parameters, PARAMETER_NAMES)
    _check_pattern("database_host", settings.database_host, HOST_NAME)
    if settings.listen_host != EVERY_ADDRESS:
        _check_pattern("listen_host", settings.listen_host, HOST_NAME)
    for name in ("advertised_host", "fleet_name"):
        if getattr(settings, name):
            _check_pattern(name, getattr(settings, name), HOST_NAME)
    for name, lowest, highest in RANGES:
        _check_range(name, getattr(settings, name), lowest, highest)
    for name, choices in CHOICES.items():
        _check_choice(name, getattr(settings, name), choices)
    _check_database_login(settings)
    _check_clients(settings)
    _check_fleet(settings)
    _check_tls(settings)
    _check_together(settings)


def _check_database_login(settings: ProxySettings) -> None:
    sources = ("database_password", "database_password_file", "database_secret_arn")
    given = [name for name in sources if getattr(settings, name)]
    if settings.database_auth == "iam":
        if given and given != ["database_secret_arn"]:
            raise SettingsInvalid(f"{variable(given[0])} must not be set when {variable('database_auth')} is iam")
        if settings.server_tls_mode == "disable":
            raise SettingsInvalid(
                f"{variable('server_tls_mode')} must not be disable when {variable('database_auth')} is iam: "
                "RDS takes IAM tokens over TLS only"
            )
    elif len(given) != 1:
        raise SettingsInvalid(
            f"set exactly one of {', '.join(map(variable, sources))}, got "
            f"{' and '.join(map(variable, given)) or 'none'}"
        )
    if not (settings.database_user or settings.database_secret_arn):
        raise SettingsInvalid(f"{variable('database_user')} must be set: role that the pool uses")
    if settings.database_password:
        _check_secret("database_password", settings.database_password)
        if len(settings.database_password.encode()) > LONGEST_SERVER_PASSWORD_BYTES:
            raise SettingsInvalid(
                f"{variable('database_password')} must have at most {LONGEST_SERVER_PASSWORD_BYTES} bytes, "
                f"got {len(settings.database_password.encode())}: PgBouncer cannot send longer ones"
            )


def _check_clients(settings: ProxySettings) -> None:
    if not (settings.client_user or settings.client_secret_arn or settings.clients):
        raise SettingsInvalid(
            f"set one of {variable('client_secret_arn')}, {variable('clients')} and (for local use) "
            f"{variable('client_user')} with {variable('client_password')}: nobody could log in"
        )
    if settings.client_user and settings.client_secret_arn:
        raise SettingsInvalid(
            f"set only one of {variable('client_user')} and {variable('client_secret_arn')}, got both"
        )
    if settings.client_user:
        _check_secret("client_password", settings.client_password)


def _check_fleet(settings: ProxySettings) -> None:
    if settings.fleet_name and settings.fleet_members:
        raise SettingsInvalid(f"set only one of {variable('fleet_name')} and {variable('fleet_members')}, got both")
    for member in filter(None, map(str.strip, settings.fleet_members.split(","))):
        if not MEMBER.fullmatch(member):
            raise SettingsInvalid(
                f"{variable('fleet_members')} must be host:health_port,host:health_port,..., got {member!r}"
            )


def _check_tls(settings: ProxySettings) -> None:
    is_weak = settings.server_tls_mode != "verify-full" and not settings.is_database_local
    if is_weak and settings.server_tls_unverified != "accepted":
        raise SettingsInvalid(
            f"{variable('server_tls_mode')} is {settings.server_tls_mode}, so that nobody would verify that "
            f"{settings.database_host} is the database: leave it at verify-full, with the CA bundle in "
            f"{variable('server_tls_ca_file')}; or set {variable('server_tls_unverified')} to accepted"
        )
    for name in filter(None, map(str.strip, settings.client_tls_host_names.split(","))):
        _check_pattern("client_tls_host_names", name, TLS_NAME)


def _check_together(settings: ProxySettings) -> None:
    if settings.client_user and settings.client_user == settings.database_user:
        raise SettingsInvalid(
            f"{variable('client_user')} must differ from {variable('database_user')}, got {settings.client_user!r} "
            "for both: the database's own user never logs in at the proxy"
        )
    if settings.database_name in RESERVED_NAMES or settings.client_user in RESERVED_NAMES:
        raise SettingsInvalid(
            f"{variable('database_name')} and {variable('client_user')} must not be one of "
            f"{', '.join(RESERVED_NAMES)}: those are the admin console's"
        )
    ports = {"client_port": settings.client_port, "health_port": settings.health_port, "data_port": settings.data_port}
    for (one, port), (other, same) in itertools.combinations(ports.items(), 2):
        if port == same:
            raise SettingsInvalid(f"{variable(one)} and {variable(other)} must differ, got {port}")
    _check_data_endpoint(settings)
    if bool(settings.client_tls_cert_file) != bool(settings.client_tls_key_file):
        raise SettingsInvalid(
            f"set both or none of {variable('client_tls_cert_file')} and {variable('client_tls_key_file')}"
        )
    certificates = ("client_tls_cert_file", "client_tls_secret_arn", "client_ca_secret_arn")
    given = [variable(name) for name in certificates if getattr(settings, name)]
    if len(given) > 1:
        raise SettingsInvalid(f"set at most one of {', '.join(map(variable, certificates))}, got {len(given)}")
    _check_budget(settings)
    if settings.balancer_notice_seconds + settings.drain_seconds >= settings.stop_seconds:
        raise SettingsInvalid(
            f"{variable('balancer_notice_seconds')} and {variable('drain_seconds')} together must be below "
            f"{variable('stop_seconds')} ({settings.stop_seconds}), "
            f"got {settings.balancer_notice_seconds} and {settings.drain_seconds}"
        )


def _check_data_endpoint(settings: ProxySettings) -> None:
    if not settings.data_port:
        return
    if settings.data_tls_mode == "disable" and not is_loopback(settings.listen_host):
        raise SettingsInvalid(
            f"{variable('data_tls_mode')} must be require unless {variable('listen_host')} is a loopback address, "
            f"got {settings.listen_host!r}: whoever reads a request can send it again"
        )
    if settings.data_tls_mode == "require" and settings.client_tls_mode == "disable":
        raise SettingsInvalid(
            f"{variable('data_tls_mode')} is require, so {variable('client_tls_mode')} must be, too: the data "
            "endpoint has its certificate"
        )


def _check_budget(settings: ProxySettings) -> None:
    if settings.floor < settings.pgbouncer_processes:
        limit = "floor_connections" if settings.shares_budget else "max_server_connections"
        raise SettingsInvalid(
            f"{variable(limit)} must be at least {variable('pgbouncer_processes')} "
            f"({settings.pgbouncer_processes}), so that each process has one, got {settings.floor}"
        )
    if settings.shared_slots < 0:
        raise SettingsInvalid(
            f"the budget is below the floors: {variable('most_tasks_alive')} {settings.most_tasks_alive} x "
            f"({variable('floor_connections')} {settings.floor_connections} + {AGENT_CONNECTIONS} of its agent) = "
            f"{settings.most_tasks_alive * (settings.floor_connections + AGENT_CONNECTIONS)}, but "
            f"{variable('max_server_connections')} is {settings.max_server_connections}: raise it, or have fewer tasks "
            "or a lower floor"
        )


def _check_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise SettingsInvalid(f"{variable(name)} must be between {lowest} and {highest}, got {value}")


def _check_secret(name: str, value: str) -> None:
    if not value or not value.isascii() or not value.isprintable():
        raise SettingsInvalid(f"{variable(name)} must be set and hold printable ASCII only (its value is not shown)")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsInvalid(f"{variable(name)} must be one of {', '.join(choices)}, got {value!r}")


def _check_pattern(name: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise SettingsInvalid(f"{variable(name)} must match {pattern.pattern}, got {value!r}")
