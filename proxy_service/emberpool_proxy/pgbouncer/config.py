"""Renders PgBouncer's files from the proxy's settings.

Owns the text of pgbouncer.ini, the auth file and the hba file; writing them is run_folder's. Every PgBouncer
default that is changed here carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emberpool_proxy.pgbouncer.scram import verifier
from emberpool_proxy.settings import ProxySettings

AGENT_USER = "emberpool_agent"  # the only user of the admin console, over the unix socket only
ADMIN_DATABASE = "pgbouncer"
SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"

INI_FILE = "pgbouncer.ini"
AUTH_FILE = "users.txt"
HBA_FILE = "hba.conf"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"


@dataclass(frozen=True)
class RenderedConfig:
    """PgBouncer's files by name. `secret_files` must never be shown; the repr holds names only."""

    files: dict[str, str] = field(repr=False)
    secret_files: frozenset[str] = frozenset({AUTH_FILE})


def render(settings: ProxySettings, agent_password: str) -> RenderedConfig:
    """Return the files of one PgBouncer; their paths are below the settings' run folder."""
    return RenderedConfig(
        files={
            INI_FILE: _ini(settings),
            AUTH_FILE: _auth_file(settings, agent_password),
            HBA_FILE: _hba(settings),
        }
    )


def _ini(settings: ProxySettings) -> str:
    run = settings.run_path
    lines = [
        "[databases]",
        # No password here: with `password=` and SCRAM verifiers for clients the server login fails (1.24, 1.25).
        (
            f"{settings.database_name} = host={settings.database_host} port={settings.database_port} "
            f"dbname={settings.database_name} user={settings.database_user}"
        ),
        "",
        "[pgbouncer]",
        f"listen_addr = {settings.listen_host}",
        f"listen_port = {settings.client_port}",
        f"unix_socket_dir = {run}",
        "unix_socket_mode = 0700",
        "auth_type = hba",
        f"auth_file = {run / AUTH_FILE}",
        f"auth_hba_file = {run / HBA_FILE}",
        f"admin_users = {AGENT_USER}",
        "pool_mode = transaction",
        f"default_pool_size = {settings.max_server_connections}",
        # The budget: default_pool_size counts per user, this one counts all of the database's connections.
        f"max_db_connections = {settings.max_server_connections}",
        f"max_client_conn = {settings.max_client_connections}",
        f"query_wait_timeout = {settings.query_wait_seconds:g}",
        *_tls(settings),
        *(f"{name} = {value}" for name, value, _ in CHANGED_DEFAULTS),
    ]
    return "\n".join(lines) + "\n"


# (setting, value, why it is not PgBouncer's default)
CHANGED_DEFAULTS: tuple[tuple[str, str, str], ...] = (
    ("max_prepared_statements", "200", "protocol-level prepared statements work through transaction pooling"),
    ("listen_backlog", "4096", "5,000 logins at once take 0.6 s instead of 2-3 s"),
    ("server_login_retry", "0.5", "clients are down for the outage, not for 15 s more"),
    ("server_connect_timeout", "3", "a silent database host fails fast enough to be tried again"),
    ("server_lifetime", "900", "connections follow a failover or a scaled database within 15 minutes"),
    ("server_idle_timeout", "60", "an idle fleet gives its connections back, so that Aurora can pause"),
    ("idle_transaction_timeout", "15", "a frozen environment must not pin a server connection"),
    ("client_idle_timeout", "3600", "an environment that vanished without FIN is forgotten"),
    ("dns_max_ttl", "2", "a failover changes the address behind the database's name"),
    ("tcp_keepidle", "30", "a peer that vanished is noticed before a load balancer forgets the flow"),
    ("tcp_keepintvl", "5", "the same"),
    ("tcp_keepcnt", "3", "the same"),
    ("tcp_user_timeout", "15000", "keepalives are off while data is unacknowledged; this is not (ms)"),
    ("ignore_startup_parameters", "extra_float_digits", "drivers send it; it changes nothing here"),
    ("log_connections", "0", "a storm of logins is two lines each, and log lines are paid for; failures are logged"),
    ("log_disconnections", "0", "the same"),
    ("stats_period", "60", "one line of totals a minute in the log"),
)


def _tls(settings: ProxySettings) -> list[str]:
    run = settings.run_path
    lines = [f"client_tls_sslmode = {settings.client_tls_mode}"]
    if settings.client_tls_mode != "disable":
        lines += [
            f"client_tls_cert_file = {run / CERTIFICATE_FILE}",
            f"client_tls_key_file = {run / KEY_FILE}",
        ]
    lines.append(f"server_tls_sslmode = {settings.server_tls_mode}")
    if settings.server_tls_mode.startswith("verify-"):
        lines.append(f"server_tls_ca_file = {settings.server_tls_ca_file or SYSTEM_CA_FILE}")
    return lines


def _auth_file(settings: ProxySettings, agent_password: str) -> str:
    # PgBouncer needs the plain password of the user that it logs in with at the database; hba rejects that
    # user at the door. Everybody else is a verifier.
    users = (
        (settings.database_user, settings.database_password),
        (settings.client_user, verifier(settings.client_password)),
        (AGENT_USER, verifier(agent_password)),
    )
    return "".join(f"{_quoted(user)} {_quoted(secret)}\n" for user, secret in users)


def _hba(settings: ProxySettings) -> str:
    host = "host" if settings.client_tls_mode == "disable" else "hostssl"
    rows = (
        f"local {ADMIN_DATABASE} {AGENT_USER} scram-sha-256",
        "local all all reject",
        f"host {ADMIN_DATABASE} all all reject",
        f"host all {_quoted(settings.database_user)} all reject",
        f"{host} {_quoted(settings.database_name)} {_quoted(settings.client_user)} all scram-sha-256",
    )
    return "\n".join(rows) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
