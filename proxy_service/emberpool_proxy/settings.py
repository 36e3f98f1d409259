"""What the proxy reads from its container's environment: names, defaults and help.

Owns the one table of `EMBERPOOL_PROXY_*` variables; what they may be is in `settings_checks`. `emberpool_cdk` imports
it to write them into the task definition, so only the standard library is imported here. Opens nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from emberpool_proxy.settings_checks import (
    AGENT_CONNECTIONS,
    EVERY_ADDRESS,
    LONGEST_SERVER_PASSWORD_BYTES,
    PLAIN_NAME,
    PREFIX,
    RANGES,
    RESERVED_NAMES,
    SettingsInvalid,
    check,
    is_loopback,
    variable,
)

__all__ = [
    "AGENT_CONNECTIONS",
    "CLIENT_PORT",
    "DATA_PORT",
    "EVERY_ADDRESS",
    "HEALTH_PORT",
    "LONGEST_SERVER_PASSWORD_BYTES",
    "PLAIN_NAME",
    "PREFIX",
    "RANGES",
    "RESERVED_NAMES",
    "ProxySettings",
    "SettingsInvalid",
    "variable",
]

CLIENT_PORT = 6432  # PgBouncer's own
HEALTH_PORT = 8080
DATA_PORT = 8443  # of the data endpoint, where there is one


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
    database_port: int = field(default=5432, metadata=_help("port of the PostgreSQL server"))
    database_auth: str = field(
        default="password", metadata=_help("`iam`: the pool logs in at the database with RDS IAM tokens")
    )
    database_user: str = field(default="", metadata=_help("role that the pool uses; a secret's `username` wins"))
    database_password: str = field(default="", repr=False, metadata=_help("password of database_user, for local use"))
    database_password_file: str = field(default="", metadata=_help("file with the password; read again on change"))
    database_secret_arn: str = field(
        default="", metadata=_help("secret in Secrets Manager, RDS's JSON: `username` and `password`")
    )
    database_must_be_writable: str = field(
        default="yes", metadata=_help("`no`: a server in recovery is good enough (a pool in front of replicas)")
    )
    database_probe_seconds: float = field(
        default=0.2, metadata=_help("time between two looks at a database that is away")
    )
    database_check_seconds: float = field(
        default=2.0, metadata=_help("time between two looks at whether the database behind a pool in use takes writes")
    )
    server_tls_mode: str = field(default="verify-full", metadata=_help("TLS to the database"))
    server_tls_unverified: str = field(
        default="refused", metadata=_help("`accepted`: a mode weaker than verify-full to a database on another machine")
    )
    server_tls_ca_file: str = field(default="", metadata=_help("CA bundle for the database; empty: the system's"))
    client_user: str = field(default="", metadata=_help("user that functions log in with at the proxy, for local use"))
    client_password: str = field(default="", repr=False, metadata=_help("password of client_user"))
    client_secret_arn: str = field(
        default="", metadata=_help("secret with `username` and `password` of the functions' user")
    )
    clients: str = field(default="", repr=False, metadata=_help("further users of the proxy: a JSON list"))
    max_connections_per_client_user: int = field(
        default=0, metadata=_help("client connections of one user; 0: only max_client_connections bounds them")
    )
    credentials_check_seconds: float = field(
        default=300.0, metadata=_help("time between two looks at the secrets; a failed login looks at once")
    )
    listen_host: str = field(default="0.0.0.0", metadata=_help("address to listen on; `*`: all, IPv6 too"))  # noqa: S104 (a task's own)
    client_port: int = field(default=CLIENT_PORT, metadata=_help("port for functions"))
    health_port: int = field(default=HEALTH_PORT, metadata=_help("port of /healthz, /readyz and /metrics"))
    client_tls_mode: str = field(default="require", metadata=_help("TLS to clients"))
    client_tls_cert_file: str = field(default="", metadata=_help("certificate; read again on change"))
    client_tls_key_file: str = field(default="", metadata=_help("private key of the certificate"))
    client_tls_secret_arn: str = field(
        default="", metadata=_help("secret with `certificate` and `private_key`, in place of the files")
    )
    client_ca_secret_arn: str = field(
        default="", metadata=_help("secret that holds the deployment's own CA; an empty one is filled")
    )
    client_tls_host_names: str = field(
        default="", metadata=_help("names that clients connect to, separated by commas, for the certificate")
    )
    pgbouncer_processes: int = field(default=1, metadata=_help("PgBouncer processes; one for each vCPU of the task"))
    max_server_connections: int = field(
        default=20, metadata=_help("the budget: server connections of this task, or of its whole fleet")
    )
    most_tasks_alive: int = field(
        default=1,
        metadata=_help("most tasks alive at once, stopping ones included, that share the budget; 1: alone"),
    )
    floor_connections: int = field(
        default=2, metadata=_help("server connections of a task of a fleet that need no slot")
    )
    reserved_connections: int = field(
        default=15,
        metadata=_help("connections of the database that are not the fleet's: superusers, operators, others"),
    )
    budget_name: str = field(
        default="emberpool", metadata=_help("fleets of the same name on one database share one budget")
    )
    budget_database: str = field(
        default="", metadata=_help("database whose advisory locks are the slots; empty: database_name")
    )
    max_client_connections: int = field(default=8000, metadata=_help("functions that may be connected"))
    query_wait_seconds: float = field(default=10.0, metadata=_help("longest wait for a server connection"))
    query_timeout_seconds: float = field(
        default=900.0,  # a function's own limit; a client that hangs in mid-message holds a server connection, too
        metadata=_help("a statement that takes longer is ended; 0: never"),
    )
    client_login_seconds: float = field(
        default=60.0, metadata=_help("a client that has not logged in by then is closed, unless it waits in line")
    )
    idle_transaction_seconds: float = field(
        default=15.0,  # a frozen environment must not pin a server connection
        metadata=_help("a transaction that is idle for longer is ended; 0: never"),
    )
    reset_policy: str = field(
        default="tracked", metadata=_help("`always`: sessions are reset after each transaction; see Session state")
    )
    tracked_parameters: str = field(
        default="IntervalStyle, default_transaction_read_only",
        metadata=_help("session parameters that PgBouncer keeps for each client; add search_path on PostgreSQL 18"),
    )
    server_idle_seconds: float = field(
        default=60.0, metadata=_help("a pool that nobody used for so long has no connection: a database can pause")
    )
    fleet_name: str = field(
        default="", metadata=_help("DNS name whose addresses are the tasks of this pool; empty: this task is alone")
    )
    fleet_members: str = field(
        default="", metadata=_help("the same as a fixed list of host:health_port, separated by commas")
    )
    advertised_host: str = field(default="", metadata=_help("this task's address for the others; empty: found"))
    cloud_map_service_id: str = field(
        default="", metadata=_help("Cloud Map service that this task leaves when it drains")
    )
    agent_tick_seconds: float = field(default=1.0, metadata=_help("time between two looks of the agent at its pool"))
    metrics_emf: str = field(default="off", metadata=_help("`on`: metrics to CloudWatch through the log (EMF)"))
    metrics_namespace: str = field(default="Emberpool", metadata=_help("CloudWatch namespace of the metrics"))
    metrics_service: str = field(
        default="emberpool-proxy", metadata=_help("CloudWatch dimension `Service`: the same for all tasks of a fleet")
    )
    balancer_notice_seconds: float = field(
        default=0.0, metadata=_help("time in a drain for the balancer to notice, before clients are closed")
    )
    fleet_check_seconds: float = field(default=2.0, metadata=_help("time between two looks at the other tasks"))
    drain_seconds: float = field(default=20.0, metadata=_help("time over which idle clients are closed in a drain"))
    stop_seconds: float = field(default=110.0, metadata=_help("the whole of a stop; below ECS's stopTimeout"))
    data_port: int = field(default=0, metadata=_help("port of the data endpoint (RDS Data API); 0: there is none"))
    data_tls_mode: str = field(
        default="require", metadata=_help("TLS of the data endpoint, by the same certificate; `disable`: loopback")
    )
    data_statement_seconds: float = field(
        default=45.0, metadata=_help("a statement of the data endpoint that takes longer is cancelled")
    )
    data_response_bytes: int = field(
        default=1024 * 1024, metadata=_help("largest answer of the data endpoint; AWS's is 1 MiB, ours up to 64")
    )
    data_request_bytes: int = field(
        default=4 * 1024 * 1024, metadata=_help("largest request that the data endpoint reads")
    )
    data_header_seconds: float = field(
        default=30.0, metadata=_help("a connection to the data endpoint is closed when no request comes for so long")
    )
    data_body_seconds: float = field(
        default=10.0, metadata=_help("time in which a request to the data endpoint must have arrived")
    )
    data_transaction_idle_seconds: float = field(
        default=180.0, metadata=_help("a transaction of the data endpoint that is idle for longer is rolled back")
    )
    data_transaction_seconds: float = field(
        default=86_400.0, metadata=_help("longest time that a transaction of the data endpoint may last")
    )
    data_most_transactions: int = field(
        default=100, metadata=_help("transactions of the data endpoint that may be open at once in one task")
    )
    data_requests_per_second: float = field(
        default=0.0, metadata=_help("requests of one client user to the data endpoint of one task; 0: no limit")
    )
    data_most_concurrent: int = field(
        default=200, metadata=_help("requests of one client user that the data endpoint of one task works on at once")
    )
    data_most_sessions: int = field(
        default=200, metadata=_help("connections of the data endpoint to its PgBouncer for one client user")
    )
    run_folder: str = field(default="/run/emberpool", metadata=_help("rendered files and sockets; a tmpfs"))
    pgbouncer_path: str = field(default="pgbouncer", metadata=_help("the PgBouncer program"))
    run_as_user: str = field(default="nobody", metadata=_help("user for PgBouncer when started as root"))
    log_level: str = field(default="INFO", metadata=_help("DEBUG, INFO, WARNING or ERROR"))

    def __post_init__(self) -> None:
        check(self)

    @property
    def shares_budget(self) -> bool:
        """Whether this task is one of several that share the budget."""
        return self.most_tasks_alive > 1

    @property
    def floor(self) -> int:
        """Server connections that this task may hold without asking: all of them when it is alone."""
        return self.floor_connections if self.shares_budget else self.max_server_connections

    @property
    def shared_slots(self) -> int:
        """Server connections that the fleet shares above the floors; negative when the floors alone do not fit."""
        if not self.shares_budget:
            return 0
        return self.max_server_connections - self.most_tasks_alive * (self.floor_connections + AGENT_CONNECTIONS)

    @property
    def is_database_local(self) -> bool:
        """Whether the database is on this machine, where nobody stands in between."""
        if self.database_host.startswith("/"):
            return True
        return is_loopback(self.database_host)

    @property
    def run_path(self) -> Path:
        """The run folder as a path."""
        return Path(self.run_folder)

    def engine_path(self, index: int) -> Path:
        """Return the folder of PgBouncer process `index`: its rendered files and its socket."""
        return self.run_path / str(index)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ProxySettings:
        """Read the settings from `environment` (default: this process's).

        Raises SettingsInvalid for a missing, malformed or unknown EMBERPOOL_PROXY_ variable.
        """
        env = os.environ if environment is None else environment
        known = {variable(f.name): f for f in fields(cls)}
        unknown = sorted(name for name in env if name.startswith(PREFIX) and name not in known)
        if unknown:
            # Without the prefix, which every name shares: with it all of them would look alike.
            near = difflib.get_close_matches(
                unknown[0].removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in known], n=1
            )
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "docs/proxy.md lists the known ones"
            raise SettingsInvalid(f"unknown setting {', '.join(unknown)}; {hint}")
        given: dict[str, Any] = {}
        for name, f in known.items():
            raw = env.get(name)
            if raw is None or raw == "":
                if f.default is MISSING:
                    raise SettingsInvalid(f"{name} must be set: {f.metadata['help']}")
                continue
            given[f.name] = _converted(name, raw, {"int": int, "float": float, "str": str}[str(f.type)])
        return cls(**given)


def _converted(name: str, raw: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(raw)
    except ValueError:
        kind = "a whole number" if convert is int else "a number"
        raise SettingsInvalid(f"{name} must be {kind}, got {raw!r}") from None
