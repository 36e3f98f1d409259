"""Renders PgBouncer's files from the proxy's settings.

Owns the text of pgbouncer.ini, the auth file and the hba file; writing them is run_folder's. Every PgBouncer
default that is changed here carries its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.pgbouncer.session_state import connect_query_option, session_lines
from emberpool_proxy.settings import ProxySettings, SettingsInvalid, variable

AGENT_USER = "emberpool_agent"  # the only user of the admin console, over the unix socket only
ADMIN_DATABASE = "pgbouncer"
SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"

INI_FILE = "pgbouncer.ini"  # what PgBouncer starts with
AUTH_FILE = "users.txt"
HBA_FILE = "hba.conf"
DATA_KEYS_FILE = "data_keys.json"
DATA_COUNTS_FILE = "data_counts.json"  # written by the data endpoint
DATABASES_FILE = "databases.ini"
PEERS_FILE = "peers.ini"
# What a running PgBouncer reads at a RELOAD: the same with the limits that it has been given since.
RUNNING_INI_FILE = "running.ini"
RUNNING_DATABASES_FILE = "running-databases.ini"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"
CLIENT_CA_FILE = "ca.crt"  # what clients on the same machine verify by; in the run folder itself
DATABASE_CA_FILE = "database-ca.crt"  # what PgBouncer verifies the database by; in the run folder itself
AGENT_CONSOLES = 6  # they count as clients: what it watches by, those of commands that block, and the limits' two
PEER_POOL_SIZE = 4  # cancel requests are rare and short
# Server connections of a pool whose PgBouncer has just started: backends of the one before may not have ended yet.
START_LIMIT = 1
LIMIT = "max_db_connections"  # 0 would mean none; of all pools of an entry: there is one, the role is forced
POOL_SIZE = "default_pool_size"  # above it PgBouncer closes what is idle
LIFETIME = "server_lifetime"
SERVER_IDLE = "server_idle_timeout"


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
class RunningTerms:
    """What a running PgBouncer was told since it started, and a RELOAD must not undo.

    `limits` and `pool_sizes` are server connections by entry of [databases]; of an entry that is missing in `limits`
    PgBouncer opens START_LIMIT, and its pool size is its limit unless said otherwise. Entries of `shrinking` close
    their connections as soon as they are free and `shrink_seconds` old. `settings` stand in for those of the ini.
    """

    limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    pool_sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    shrinking: frozenset[str] = frozenset()
    shrink_seconds: float = 0.0
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def limit(self, entry: str) -> int:
        """Return how many server connections the entry may have."""
        return max(self.limits.get(entry, START_LIMIT), 1)

    def pool_size(self, entry: str) -> int:
        """Return PgBouncer's pool size for the entry."""
        return max(self.pool_sizes.get(entry, self.limit(entry)), 1)

    def lifetime(self) -> str:
        """Return `server_lifetime` in seconds when nothing shrinks."""
        return self.settings.get(LIFETIME, DEFAULT_LIFETIME)


@dataclass(frozen=True)
class RenderedConfig:
    """PgBouncer's files by name. `secret_files` must never be shown; the repr holds names only."""

    files: dict[str, str] = field(repr=False)
    secret_files: frozenset[str] = frozenset({AUTH_FILE, DATA_KEYS_FILE})


def render(
    settings: ProxySettings,
    snapshot: Snapshot,
    identity: EngineIdentity,
    peers: tuple[Peer, ...] = (),
    rejected: tuple[str, ...] = (),
    terms: RunningTerms | None = None,
    database_host: str = "",
) -> RenderedConfig:
    """Return the files of one PgBouncer process; their paths are below its folder.

    `rejected` are hba rows that come before all that let somebody in. `database_host` is another spelling of the
    settings'. Raises SettingsInvalid when there are too few
    server connections for so many roles.
    """
    _check_room(settings, len(snapshot.entries))
    starting, running = RunningTerms(), terms or RunningTerms()
    entries = snapshot.entries
    return RenderedConfig(
        files={
            INI_FILE: _ini(settings, identity, snapshot, DATABASES_FILE, starting),
            RUNNING_INI_FILE: _ini(settings, identity, snapshot, RUNNING_DATABASES_FILE, running),
            AUTH_FILE: _auth_file(snapshot, identity.agent_verifier),
            HBA_FILE: _hba(settings, snapshot, rejected),
            DATABASES_FILE: render_databases(settings, entries, starting, database_host),
            RUNNING_DATABASES_FILE: render_databases(settings, entries, running, database_host),
            PEERS_FILE: _peers(identity, peers),
            **({DATA_KEYS_FILE: _data_keys(snapshot)} if settings.data_port and not identity.index else {}),
        }
    )


def render_databases(
    settings: ProxySettings, entries: Mapping[str, str], terms: RunningTerms, database_host: str = ""
) -> str:
    """Return the text of [databases] for `entries`, the role of each by its name. There is no secret in it."""
    # No password here: with `password=` and SCRAM verifiers for clients the server login fails (1.24, 1.25).
    return "".join(
        f"{entry} = host={database_host or settings.database_host} port={settings.database_port} "
        f"dbname={settings.database_name} user={role} {_entry_limits(entry, len(entries), terms)}"
        f"{connect_query_option()}\n"
        for entry, role in sorted(entries.items())
    )


def bundle_path(settings: ProxySettings) -> Path:
    """Return the file with all authorities that may verify the database."""
    return Path(settings.server_tls_ca_file or SYSTEM_CA_FILE).absolute()


def narrows_authorities(settings: ProxySettings) -> bool:
    """Say whether PgBouncer reads DATABASE_CA_FILE instead of the bundle: not over a unix socket, which has no TLS."""
    return settings.server_tls_mode.startswith("verify-") and not settings.database_host.startswith("/")


def timeouts(settings: ProxySettings, terms: RunningTerms) -> dict[str, str]:
    """Return what is in force of the settings that `terms` may change: by their names, as PgBouncer wants them."""
    defaults = {name: value for name, value, _ in CHANGED_DEFAULTS}
    given = {**defaults, SERVER_IDLE: f"{settings.server_idle_seconds:g}", **terms.settings}
    return {**given, LIFETIME: f"{terms.shrink_seconds:.6f}" if terms.shrinking else terms.lifetime()}


def _entry_limits(entry: str, entries: int, terms: RunningTerms) -> str:
    if entries == 1:
        return ""  # what SET can change, at a hundredth of a RELOAD's price, must not stand here
    # An entry's own lifetime has whole seconds only, so the short one is the ini's, and the others are kept from it.
    is_spared = terms.shrinking and entry not in terms.shrinking
    lifetime = f"{LIFETIME}={terms.lifetime()} " if is_spared else ""
    return f"pool_size={terms.pool_size(entry)} {LIMIT}={terms.limit(entry)} {lifetime}"


def _ini(
    settings: ProxySettings, identity: EngineIdentity, snapshot: Snapshot, databases: str, terms: RunningTerms
) -> str:
    run = settings.engine_path(identity.index)
    # Of several entries each line says its own.
    entry = next(iter(snapshot.entries)) if len(snapshot.entries) == 1 else ""
    given = timeouts(settings, terms)
    lines = [
        "[databases]",
        f"%include {run / databases}",
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
        f"{POOL_SIZE} = {terms.pool_size(entry)}",
        f"{LIMIT} = {terms.limit(entry)}",
        f"max_client_conn = {settings.max_client_connections + AGENT_CONSOLES}",
        f"query_wait_timeout = {settings.query_wait_seconds:g}",
        f"{SERVER_IDLE} = {given[SERVER_IDLE]}",
        f"query_timeout = {settings.query_timeout_seconds:g}",
        f"idle_transaction_timeout = {settings.idle_transaction_seconds:g}",
        # A login waits for the database too: PgBouncer greets nobody before it has one connection.
        f"client_login_timeout = {max(settings.client_login_seconds, settings.query_wait_seconds + 1):g}",
        *_tls(settings, run),
        *session_lines(settings),
        *(f"{name} = {given[name]}" for name, _, _ in CHANGED_DEFAULTS),
    ]
    return "\n".join(lines) + "\n"


def _check_room(settings: ProxySettings, entries: int) -> None:
    pools = settings.pgbouncer_processes * entries
    # Each pool keeps one; in a fleet one that starts again has one more while the backends of before end.
    least = 2 * pools - 1 if settings.shares_budget else pools
    if settings.floor < least:
        limit = "floor_connections" if settings.shares_budget else "max_server_connections"
        raise SettingsInvalid(
            f"{variable(limit)} must be at least {least} for {entries} database roles in "
            f"{settings.pgbouncer_processes} PgBouncer processes, got {settings.floor}: raise it, or have fewer roles "
            "or processes"
        )


def _peers(identity: EngineIdentity, peers: tuple[Peer, ...]) -> str:
    return "".join(
        f"{peer.peer_id} = host={peer.host} port={peer.port} pool_size={PEER_POOL_SIZE}\n"
        for peer in sorted(peers, key=lambda peer: peer.peer_id)
        if peer.peer_id != identity.peer_id
    )


DEFAULT_LIFETIME = "900"
# (setting, value, why it is not PgBouncer's default)
CHANGED_DEFAULTS: tuple[tuple[str, str, str], ...] = (
    ("max_prepared_statements", "200", "protocol-level prepared statements work through transaction pooling"),
    ("listen_backlog", "4096", "5,000 logins at once take 0.6 s instead of 2-3 s"),
    ("server_login_retry", "0.1", "clients are down for the outage, not for 15 s more"),
    ("server_connect_timeout", "3", "a silent database host fails fast enough to be tried again"),
    (LIFETIME, DEFAULT_LIFETIME, "connections follow a failover or a scaled database within 15 minutes"),
    ("client_idle_timeout", "3600", "an environment that vanished without FIN is forgotten"),
    ("dns_max_ttl", "0.1", "a failover changes the address behind the database's name: whoever connects looks it up"),
    ("dns_nxdomain_ttl", "0.1", "the same, of a name that has no address for a moment"),
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
            # Without one PgBouncer tells every client the names of all the system's CAs, in case it has a certificate:
            # 15 kB and a third of the CPU time of a handshake; and it takes 43 ms to read them at each RELOAD.
            f"client_tls_ca_file = {run / CERTIFICATE_FILE}",
        ]
    lines.append(f"server_tls_sslmode = {settings.server_tls_mode}")
    if settings.server_tls_mode.startswith("verify-"):
        path = settings.run_path / DATABASE_CA_FILE if narrows_authorities(settings) else bundle_path(settings)
        lines.append(f"server_tls_ca_file = {path}")
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


def _of_data_endpoint(settings: ProxySettings, snapshot: Snapshot) -> Iterator[str]:
    """Yield the rows by which the data endpoint, which is the only one to reach the socket, logs in for a client."""
    if settings.data_port:
        for client in snapshot.clients:
            if not client.is_removed:
                yield f"local {_quoted(client.entry)} {_quoted(client.name)} scram-sha-256"


def _data_keys(snapshot: Snapshot) -> str:
    """Return who may sign requests to the data endpoint, and with what."""
    keys = [
        {
            "name": client.name,
            "entry": client.entry,
            "passwords": client.passwords,
            "read_only": client.is_read_only,
        }
        for client in snapshot.clients
        if client.passwords and not client.is_removed
    ]
    return json.dumps(keys, indent=1) + "\n"


def _hba(settings: ProxySettings, snapshot: Snapshot, rejected: tuple[str, ...]) -> str:
    host = "host" if settings.client_tls_mode == "disable" else "hostssl"
    rows = (
        # The console, and its question through each pool whether the database is back and writable.
        f"local all {AGENT_USER} scram-sha-256",
        *_of_data_endpoint(settings, snapshot),
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
