"""The context values of our app: one table of names, defaults and meanings, and their validation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emberpool_cdk.layer_build import MACHINES, RUNTIMES
from emberpool_proxy.settings import PLAIN_NAME, RANGES, ProxySettings

DATABASE_NEW = "new"
DATABASE_EXISTING = "existing"
URL_IAM = "iam"
URL_PUBLIC = "public"
PROXY_RANGES = {name: (int(lowest), int(highest)) for name, lowest, highest in RANGES}


class ContextInvalid(ValueError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """A context value is missing, unknown or out of range: the message says which and how to set it."""


@dataclass(frozen=True)
class ContextValue:
    """One row of the table: `cdk deploy -c NAME=VALUE`; `of` is the kind of database that it is for, empty for both."""

    name: str
    default: str
    help: str
    of: str = ""
    is_needed: bool = False

    @property
    def default_text(self) -> str:
        """What holds when it is not given, in words."""
        return f"needed with database={self.of}" if self.is_needed else f"default {self.default or 'empty'}"


CONTEXT: tuple[ContextValue, ...] = (
    ContextValue("database", DATABASE_NEW, "new: a small RDS PostgreSQL of its own; existing: yours"),
    ContextValue("minTasks", "2", "proxy tasks that always run"),
    ContextValue("maxTasks", "4", "proxy tasks under load"),
    ContextValue("endpoint", "nlb", "nlb: a load balancer; dns: none to pay, functions find the tasks by name"),
    ContextValue("dataEndpoint", "false", "true: the tasks answer SQL over HTTPS, too (RDS Data API)"),
    ContextValue("dualStack", "false", "true: functions may reach the pool by IPv6, too; its subnets have it"),
    ContextValue("architecture", "arm64", f"of proxy, layer and example: {' or '.join(MACHINES)}"),
    ContextValue("runtime", "python3.13", f"of layer and example: {', '.join(RUNTIMES)}"),
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
    ContextValue("databaseName", "postgres", "database to connect to"),
    ContextValue("maxConnections", "100", "max_connections of the new database", of=DATABASE_NEW),
    ContextValue(
        "exampleUrl", URL_IAM, "who may call the example's URL: iam, whom you allow; public, everybody", of=DATABASE_NEW
    ),
    ContextValue("vpcId", "", "VPC of the existing database", of=DATABASE_EXISTING, is_needed=True),
    ContextValue("databaseHost", "", "host name of the existing database", of=DATABASE_EXISTING, is_needed=True),
    ContextValue(
        "databaseSecretArn", "", "its secret: JSON with username, password", of=DATABASE_EXISTING, is_needed=True
    ),
    ContextValue("databaseMaxConnections", "", "its max_connections", of=DATABASE_EXISTING, is_needed=True),
    ContextValue("databasePort", "5432", "port of the existing database", of=DATABASE_EXISTING),
    ContextValue(
        "databaseSecurityGroupId",
        "",
        "its security group: the pool opens the port in it; empty: you do",
        of=DATABASE_EXISTING,
    ),
)
CHOICES = {
    "database": (DATABASE_NEW, DATABASE_EXISTING),
    "endpoint": ("nlb", "dns"),
    "dualStack": ("false", "true"),
    "dataEndpoint": ("false", "true"),
    "architecture": tuple(MACHINES),
    "runtime": RUNTIMES,
    "exampleUrl": (URL_IAM, URL_PUBLIC),
}
# Of those that are given: what CloudFormation would refuse minutes later, or the proxy at its start.
PATTERNS = {
    "budgetName": (PLAIN_NAME.pattern, "my-pool"),
    "databaseName": (PLAIN_NAME.pattern, "shop"),
    "vpcId": (r"vpc-[0-9a-f]+", "vpc-0123456789abcdef0"),
    "databaseHost": (r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", "db.example.com, without a port"),
    "databaseSecretArn": (
        r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[A-Za-z0-9/_+=.@-]+-[A-Za-z0-9]{6}",
        "the complete ARN, with the six characters at its end",
    ),
    "databaseSecurityGroupId": (r"sg-[0-9a-f]+", "sg-0123456789abcdef0"),
}
NAME_OF_RDS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


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
    endpoint: str
    dual_stack: bool
    data_endpoint: bool
    reserved_connections: int
    floor_connections: int
    budget_name: str
    other_tasks: int
    architecture: str
    runtime: str
    max_connections: int
    database_name: str
    is_url_public: bool
    existing: ExistingDatabase | None

    @classmethod
    def from_values(cls, given: Mapping[str, Any]) -> AppContext:
        """Read the app's values from all of the CDK's context (which has others too)."""
        _check_names(given)
        values = {row.name: _as_text(given.get(row.name, row.default)) for row in CONTEXT}
        _check_choices(values)
        _check_kind(values)
        _check_patterns(values)
        is_existing = values["database"] == DATABASE_EXISTING
        min_tasks = _integer(values, "minTasks", 1, 1000)
        return cls(
            min_tasks=min_tasks,
            max_tasks=_integer(values, "maxTasks", min_tasks, 1000),
            endpoint=values["endpoint"],
            dual_stack=values["dualStack"] == "true",
            data_endpoint=values["dataEndpoint"] == "true",
            reserved_connections=_integer(values, "reservedConnections", *PROXY_RANGES["reserved_connections"]),
            floor_connections=_integer(values, "floorConnections", *PROXY_RANGES["floor_connections"]),
            budget_name=values["budgetName"],
            other_tasks=_integer(values, "otherTasks", 0, PROXY_RANGES["most_tasks_alive"][1]),
            architecture=values["architecture"],
            runtime=values["runtime"],
            max_connections=_integer(values, "maxConnections", 6, 8_388_607),  # what RDS accepts
            database_name=values["databaseName"],
            is_url_public=values["exampleUrl"] == URL_PUBLIC,
            existing=_existing(values) if is_existing else None,
        )


def context_table() -> str:
    """Return the table of context values as text, for messages and the documentation."""
    wide = max(len(row.name) for row in CONTEXT)
    return "\n".join(f"  {row.name:<{wide}}  {row.help} ({row.default_text})" for row in CONTEXT)


def _existing(values: Mapping[str, str]) -> ExistingDatabase:
    return ExistingDatabase(
        vpc_id=values["vpcId"],
        host=values["databaseHost"],
        port=_integer(values, "databasePort", 1, 65535),
        name=values["databaseName"],
        secret_arn=values["databaseSecretArn"],
        max_connections=_integer(values, "databaseMaxConnections", 1, 262_143),
        security_group_id=values["databaseSecurityGroupId"],
    )


def _check_choices(values: Mapping[str, str]) -> None:
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            *others, last = choices
            raise ContextInvalid(f"{name} must be {', '.join(others)} or {last}, got {values[name]!r}")


def _check_kind(values: Mapping[str, str]) -> None:
    kind = values["database"]
    for row in CONTEXT:
        if row.of and row.of != kind and values[row.name] not in ("", row.default):
            raise ContextInvalid(
                f"{row.name} is for database={row.of}, but database is {kind}: add -c database={row.of}, or leave "
                f"{row.name} out"
            )
    missing = [row.name for row in CONTEXT if row.is_needed and row.of == kind and not values[row.name]]
    if missing:
        shown = " ".join(f"-c {name}=…" for name in missing)
        raise ContextInvalid(f"database={kind} needs {', '.join(missing)}: add {shown}")


def _check_patterns(values: Mapping[str, str]) -> None:
    for name, (pattern, example) in PATTERNS.items():
        value = values[name]
        if (value or name == "databaseName") and not re.fullmatch(pattern, value):
            raise ContextInvalid(f"{name} must match {pattern} ({example}), got {value!r}")
    if values["database"] == DATABASE_NEW and not NAME_OF_RDS.fullmatch(values["databaseName"]):
        raise ContextInvalid(
            f"databaseName of a new database must match {NAME_OF_RDS.pattern}, got {values['databaseName']!r}"
        )


def _as_text(value: Any) -> str:
    # In cdk.json true may stand without quotes.
    return str(value).lower() if isinstance(value, bool) else str(value)


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
