"""The context values of our app: one table of names, defaults and meanings, and their validation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emberpool_proxy.settings import PLAIN_NAME, RANGES, ProxySettings

DATABASE_NEW = "new"
DATABASE_EXISTING = "existing"
PROXY_RANGES = {name: (int(lowest), int(highest)) for name, lowest, highest in RANGES}


class ContextInvalid(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """A context value is missing, unknown or out of range: the message says which and how to set it."""


@dataclass(frozen=True)
class ContextValue:
    """One row of the table: `cdk deploy -c NAME=VALUE`."""

    name: str
    default: str
    help: str
    needed_for_existing: bool = False


CONTEXT: tuple[ContextValue, ...] = (
    ContextValue("database", DATABASE_NEW, "new: a small RDS PostgreSQL of its own; existing: yours"),
    ContextValue("minTasks", "2", "proxy tasks that always run"),
    ContextValue("maxTasks", "4", "proxy tasks under load"),
    ContextValue("architecture", "arm64", "of proxy, layer and example: arm64 or x86_64"),
    ContextValue(
        "reservedConnections",
        str(ProxySettings.reserved_connections),
        "connections that are left to others than the pool",
    ),
    ContextValue(
        "floorConnections", str(ProxySettings.floor_connections), "server connections that each task may always have"
    ),
    ContextValue("budgetName", "", "pools of the same name on one database share one budget; empty: its own"),
    ContextValue("otherTasks", "0", "tasks of the other pools of that name, each at its most"),
    ContextValue("maxConnections", "100", "max_connections of the new database"),
    ContextValue("vpcId", "", "VPC of the existing database", needed_for_existing=True),
    ContextValue("databaseHost", "", "host name of the existing database", needed_for_existing=True),
    ContextValue("databaseSecretArn", "", "its secret: JSON with username, password", needed_for_existing=True),
    ContextValue("databaseMaxConnections", "", "its max_connections", needed_for_existing=True),
    ContextValue("databaseName", "postgres", "database to connect to"),
    ContextValue("databasePort", "5432", "port of the existing database"),
    ContextValue("databaseSecurityGroupId", "", "its security group: the pool opens the port in it; empty: you do"),
)


@dataclass(frozen=True)
class ExistingDatabase:
    """Where the user's own database is."""

    vpc_id: str
    host: str
    port: int
    name: str
    secret_arn: str
    max_connections: int
    security_group_id: str


@dataclass(frozen=True)
class AppContext:
    """The validated context. Raises ContextInvalid with the one value that is wrong."""

    min_tasks: int
    max_tasks: int
    reserved_connections: int
    floor_connections: int
    budget_name: str
    other_tasks: int
    architecture: str
    max_connections: int
    database_name: str
    existing: ExistingDatabase | None

    @classmethod
    def from_values(cls, given: Mapping[str, Any]) -> AppContext:
        """Read the app's values from all of the CDK's context (which has others too)."""
        _check_names(given)
        values = {row.name: str(given.get(row.name, row.default)) for row in CONTEXT}
        if values["database"] not in (DATABASE_NEW, DATABASE_EXISTING):
            raise ContextInvalid(f"database must be {DATABASE_NEW} or {DATABASE_EXISTING}, got {values['database']!r}")
        if values["architecture"] not in ("arm64", "x86_64"):
            raise ContextInvalid(f"architecture must be arm64 or x86_64, got {values['architecture']!r}")
        if values["budgetName"] and not PLAIN_NAME.fullmatch(values["budgetName"]):
            raise ContextInvalid(f"budgetName must match {PLAIN_NAME.pattern}, got {values['budgetName']!r}")
        is_existing = values["database"] == DATABASE_EXISTING
        min_tasks = _integer(values, "minTasks", 1, 1000)
        return cls(
            min_tasks=min_tasks,
            max_tasks=_integer(values, "maxTasks", min_tasks, 1000),
            reserved_connections=_integer(values, "reservedConnections", *PROXY_RANGES["reserved_connections"]),
            floor_connections=_integer(values, "floorConnections", *PROXY_RANGES["floor_connections"]),
            budget_name=values["budgetName"],
            other_tasks=_integer(values, "otherTasks", 0, PROXY_RANGES["most_tasks_alive"][1]),
            architecture=values["architecture"],
            max_connections=_integer(values, "maxConnections", 6, 8_388_607),  # what RDS accepts
            database_name=values["databaseName"],
            existing=_existing(values) if is_existing else None,
        )


def context_table() -> str:
    """Return the table of context values as text, for messages and the documentation."""
    wide = max(len(row.name) for row in CONTEXT)
    rows = []
    for row in CONTEXT:
        default = "needed with database=existing" if row.needed_for_existing else f"default {row.default or 'empty'}"
        rows.append(f"  {row.name:<{wide}}  {row.help} ({default})")
    return "\n".join(rows)


def _existing(values: Mapping[str, str]) -> ExistingDatabase:
    missing = [row.name for row in CONTEXT if row.needed_for_existing and not values[row.name]]
    if missing:
        shown = " ".join(f"-c {name}=…" for name in missing)
        raise ContextInvalid(f"database=existing needs {', '.join(missing)}: add {shown}")
    if not values["databaseSecretArn"].startswith("arn:"):
        raise ContextInvalid(f"databaseSecretArn must be a full ARN, got {values['databaseSecretArn']!r}")
    return ExistingDatabase(
        vpc_id=values["vpcId"],
        host=values["databaseHost"],
        port=_integer(values, "databasePort", 1, 65535),
        name=values["databaseName"],
        secret_arn=values["databaseSecretArn"],
        max_connections=_integer(values, "databaseMaxConnections", 1, 262_143),
        security_group_id=values["databaseSecurityGroupId"],
    )


def _integer(values: Mapping[str, str], name: str, lowest: int, highest: int) -> int:
    try:
        value = int(values[name])
    except ValueError:
        raise ContextInvalid(f"{name} must be a whole number, got {values[name]!r}") from None
    if not lowest <= value <= highest:
        raise ContextInvalid(f"{name} must be between {lowest} and {highest}, got {value}")
    return value


def _check_names(given: Mapping[str, Any]) -> None:
    # Only near misses: the CDK, its plugins and ~/.cdk.json have context of their own.
    known = {row.name.lower(): row.name for row in CONTEXT}
    for name in given:
        if name in known.values() or ":" in name:
            continue
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
        if close:
            raise ContextInvalid(f"there is no context value {name}: did you mean {known[close[0]]}?")
