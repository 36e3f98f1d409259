"""Renders PgBouncer's files from the proxy's settings.

Owns the text of pgbouncer.ini, the auth file and the hba file; writing them is run_folder's. Every PgBouncer
default that is changed here carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.pgbouncer.session_state import connect_query_option, session_lines
from emberpool_proxy.settings import ProxySettings, SettingsInvalid, variable

AGENT_USER = "emberpool_agent"  # the only user of the admin console, over the unix socket only
ADMIN_DATABASE = "pgbouncer"
SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"

INI_FILE = "pgbouncer.ini"
AUTH_FILE = "users.txt"
HBA_FILE = "hba.conf"
DATABASES_FILE = "databases.ini"
PEERS_FILE = "peers.ini"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"
CLIENT_CA_FILE = "ca.crt"  # what clients on the same machine verify by; in the run folder itself
AGENT_CONSOLES = 4  # they count as clients: what it watches by, and those of commands that block
PEER_POOL_SIZE = 4  # cancel requests are rare and short


@dataclass(frozen=True)
class EngineIdentity:
    """Which PgBouncer process of the task this is, its id among the fleet's peers, and the console's login."""

    index: int
    peer_id: int  # 0: it has no peers
    agent_verifier: str = field(repr=False)


@dataclass(frozen=True)
class Peer:
    """One PgBouncer of the fleet, for cancel requests that reach the wrong one."""

    peer_id: int
    host: str
    port: int


@dataclass(frozen=True)
class RenderedConfig:
    """PgBouncer's files by name. `secret_files` must never be shown; the repr holds names only."""

    files: dict[str, str] = field(repr=False)
    secret_files: frozenset[str] = frozenset({AUTH_FILE})


def render(
    settings: ProxySettings,
    snapshot: Snapshot,
    identity: EngineIdentity,
    peers: tuple[Peer, ...] = (),
    rejected: tuple[str, ...] = (),
) -> RenderedConfig:
    """Return the files of one PgBouncer process; their paths are below its folder.

    `rejected` are hba rows that come before all that let somebody in.
    """
    return RenderedConfig(
        files={
            INI_FILE: _ini(settings, identity, snapshot),
            AUTH_FILE: _auth_file(snapshot, identity.agent_verifier),
            HBA_FILE: _hba(settings, snapshot, rejected),
            DATABASES_FILE: _databases(settings, snapshot),
            PEERS_FILE: _peers(identity, peers),
        }
    )


def server_connections(settings: ProxySettings, index: int) -> int:
    """Return the share of PgBouncer process `index` of this task's server connections."""
    share, rest = divmod(settings.max_server_connections, settings.pgbouncer_processes)
    return share + (1 if index < rest else 0)


def _ini(settings: ProxySettings, identity: EngineIdentity, snapshot: Snapshot) -> str:
    run = settings.engine_path(identity.index)
    share = server_connections(settings, identity.index)
    lines = [
        "[databases]",
        f"%include {run / DATABASES_FILE}",
        "",
        "[peers]",
        f"%include {run / PEERS_FILE}",
        "",
        "[users]",
        *(
            f"{client.name} = max_user_client_connections={limit}"
            for client in snapshot.clients
            if not client.is_removed and (limit := client.max_connections or settings.max_connections_per_client_user)
        ),
        "",
        "[pgbouncer]",
        f"listen_addr = {settings.listen_host}",
        f"listen_port = {settings.client_port}",
        *(["so_reuseport = 1"] if settings.pgbouncer_processes > 1 else []),
        *([f"peer_id = {identity.peer_id}"] if identity.peer_id else []),
        f"unix_socket_dir = {run}",
        "unix_socket_mode = 0700",
        "auth_type = hba",
        f"auth_file = {run / AUTH_FILE}",
        f"auth_hba_file = {run / HBA_FILE}",
        f"admin_users = {AGENT_USER}",
        "pool_mode = transaction",
        f"default_pool_size = {share}",
        # The budget: default_pool_size counts per user, this one all of an entry's; PgBouncer has none for all entries.
        f"max_db_connections = {_share_of_entry(share, len(snapshot.entries))}",
        f"max_client_conn = {settings.max_client_connections + AGENT_CONSOLES}",
        f"query_wait_timeout = {settings.query_wait_seconds:g}",
        f"server_idle_timeout = {settings.server_idle_seconds:g}",
        f"query_timeout = {settings.query_timeout_seconds:g}",
        f"idle_transaction_timeout = {settings.idle_transaction_seconds:g}",
        # A login waits for the database too: PgBouncer greets nobody before it has one connection.
        f"client_login_timeout = {max(settings.client_login_seconds, settings.query_wait_seconds + 1):g}",
        *_tls(settings, run),
        *session_lines(settings),
        *(f"{name} = {value}" for name, value, _ in CHANGED_DEFAULTS),
    ]
    return "\n".join(lines) + "\n"


def _share_of_entry(share: int, entries: int) -> int:
    if entries > share:
        raise SettingsInvalid(
            f"{variable('max_server_connections')} gives a PgBouncer process {share} connections for {entries} "
            "database roles: each role's pool needs one; raise it, or have fewer roles or processes"
        )
    return share // max(entries, 1)


def _databases(settings: ProxySettings, snapshot: Snapshot) -> str:
    # No password here: with `password=` and SCRAM verifiers for clients the server login fails (1.24, 1.25).
    return "".join(
        f"{entry} = host={settings.database_host} port={settings.database_port} "
        f"dbname={settings.database_name} user={role} {connect_query_option()}\n"
        for entry, role in sorted(snapshot.entries.items())
    )


def _peers(identity: EngineIdentity, peers: tuple[Peer, ...]) -> str:
    return "".join(
        f"{peer.peer_id} = host={peer.host} port={peer.port} pool_size={PEER_POOL_SIZE}\n"
        for peer in sorted(peers, key=lambda peer: peer.peer_id)
        if peer.peer_id != identity.peer_id
    )


# (setting, value, why it is not PgBouncer's default)
CHANGED_DEFAULTS: tuple[tuple[str, str, str], ...] = (
    ("max_prepared_statements", "200", "protocol-level prepared statements work through transaction pooling"),
    ("listen_backlog", "4096", "5,000 logins at once take 0.6 s instead of 2-3 s"),
    ("server_login_retry", "0.1", "clients are down for the outage, not for 15 s more"),
    ("server_connect_timeout", "3", "a silent database host fails fast enough to be tried again"),
    ("server_lifetime", "900", "connections follow a failover or a scaled database within 15 minutes"),
    ("client_idle_timeout", "3600", "an environment that vanished without FIN is forgotten"),
    ("dns_max_ttl", "2", "a failover changes the address behind the database's name"),
    ("tcp_keepidle", "900", "a frozen environment answers no probe: earlier ones would cut it off though it lives"),
    ("tcp_keepintvl", "15", "a peer that vanished is forgotten a minute after its first probe"),
    ("tcp_keepcnt", "4", "the same"),
    ("tcp_user_timeout", "15000", "keepalives are off while data is unacknowledged; this is not (ms)"),
    ("ignore_startup_parameters", "extra_float_digits", "drivers send it; it changes nothing here"),
    ("log_connections", "0", "a storm of logins is two lines each, and log lines are paid for; failures are logged"),
    ("log_disconnections", "1", "why a connection to the database failed is told there only; clients' go to DEBUG"),
    ("stats_period", "60", "one line of totals a minute in the log"),
)


def _tls(settings: ProxySettings, run: Path) -> list[str]:
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


def _auth_file(snapshot: Snapshot, agent_verifier: str) -> str:
    # PgBouncer needs the plain password of the roles that it logs in with at the database; hba rejects those
    # users at the door. Everybody else is a verifier.
    users = (
        *sorted(snapshot.database_logins.items()),
        *((client.name, client.verifier) for client in snapshot.clients),
        (AGENT_USER, agent_verifier),
    )
    return "".join(f"{_quoted(user)} {_quoted(secret)}\n" for user, secret in users)


def _hba(settings: ProxySettings, snapshot: Snapshot, rejected: tuple[str, ...]) -> str:
    host = "host" if settings.client_tls_mode == "disable" else "hostssl"
    rows = (
        # The console, and its question through each pool whether the database is back and writable.
        f"local all {AGENT_USER} scram-sha-256",
        "local all all reject",
        f"host {ADMIN_DATABASE} all all reject",
        *(f"host all {_quoted(role)} all reject" for role in sorted(snapshot.database_logins)),
        *rejected,
        *(
            f"{host} {_quoted(client.entry)} {_quoted(client.name)} all scram-sha-256"
            for client in snapshot.clients
            if not client.is_removed
        ),
    )
    return "\n".join(rows) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
