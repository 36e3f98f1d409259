"""The proxy's users as the settings name them: one of the settings' own, and the JSON list `clients`.

    [{"secret_arn": "arn:…", "entry": "reporting", "database_role_secret_arn": "arn:…", "max_connections": 50}]

`secret_arn` holds the user's name and password. `entry` is the database name that its functions connect to; without
one it is `database_name`, served with the proxy's own role. Another entry has a role of its own in the same database:
`database_role_secret_arn`, or `database_role` where the pool logs in with IAM tokens. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

from emberpool_proxy.settings import PLAIN_NAME, RESERVED_NAMES, ProxySettings, SettingsInvalid, variable

MOST_CLIENTS = 200  # every one is a secret that is read at each check
ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[A-Za-z0-9/_+=.@-]+")


@dataclass(frozen=True)
class ClientSpec:
    """One user, or one group of functions that shares a user: where its login is, and what it may use."""

    secret_arn: str  # "": client_user and client_password of the settings
    entry: str
    database_role_secret_arn: str = ""  # "": the proxy's own role, or database_role
    database_role: str = ""  # with IAM tokens only
    max_connections: int = 0
    read_only: bool = False  # at the data endpoint; elsewhere what the role may do is the database's to say


KEYS = tuple(f.name for f in fields(ClientSpec))


def client_specs(settings: ProxySettings) -> tuple[ClientSpec, ...]:
    """Return all users that the settings name.

    Raises SettingsInvalid, which says what is wrong with which element of `clients`.
    """
    specs = []
    if settings.client_user or settings.client_secret_arn:
        limit = settings.max_connections_per_client_user
        specs.append(ClientSpec(settings.client_secret_arn, settings.database_name, max_connections=limit))
    specs += [_spec(element, index, settings) for index, element in enumerate(_elements(settings.clients))]
    _check_together(specs)
    return tuple(specs)


def _elements(text: str) -> list[Any]:
    if not text.strip():
        return []
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise SettingsInvalid(
            f"{variable('clients')} must be a JSON list: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(found, list):
        raise SettingsInvalid(f"{variable('clients')} must be a JSON list, got {type(found).__name__}")
    if len(found) > MOST_CLIENTS:
        raise SettingsInvalid(f"{variable('clients')} must have at most {MOST_CLIENTS} elements, got {len(found)}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = sorted({name for name, _ in pairs if [key for key, _ in pairs].count(name) > 1})
    if twice:
        raise SettingsInvalid(f"{variable('clients')} has the key {twice[0]!r} twice in one element")
    return dict(pairs)


def _spec(element: Any, index: int, settings: ProxySettings) -> ClientSpec:
    where = f"{variable('clients')}[{index}]"
    if not isinstance(element, dict):
        raise SettingsInvalid(f"{where} must be an object with {', '.join(KEYS)}, got {type(element).__name__}")
    unknown = sorted(set(element) - set(KEYS))
    if unknown:
        raise SettingsInvalid(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    spec = ClientSpec(
        secret_arn=_text(element, "secret_arn", where),
        entry=_text(element, "entry", where) or settings.database_name,
        database_role_secret_arn=_text(element, "database_role_secret_arn", where),
        database_role=_text(element, "database_role", where),
        max_connections=_limit(element, where, settings),
        read_only=_flag(element, "read_only", where),
    )
    _check(spec, where, settings)
    return spec


def _text(element: dict[str, Any], key: str, where: str) -> str:
    value = element.get(key, "")
    if not isinstance(value, str):
        raise SettingsInvalid(f"{where}.{key} must be text, got {type(value).__name__}")
    return value


def _flag(element: dict[str, Any], key: str, where: str) -> bool:
    value = element.get(key, False)
    if not isinstance(value, bool):
        raise SettingsInvalid(f"{where}.{key} must be true or false, got {json.dumps(value)[:40]}")
    return value


def _limit(element: dict[str, Any], where: str, settings: ProxySettings) -> int:
    value = element.get("max_connections", settings.max_connections_per_client_user)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= settings.max_client_connections:
        raise SettingsInvalid(
            f"{where}.max_connections must be a whole number between 0 and {settings.max_client_connections}, "
            f"got {json.dumps(value)[:40]}"
        )
    return value


def _check(spec: ClientSpec, where: str, settings: ProxySettings) -> None:
    if not spec.secret_arn:
        raise SettingsInvalid(f"{where}.secret_arn must be set: the secret with the user's name and password")
    for key in ("secret_arn", "database_role_secret_arn"):
        value = getattr(spec, key)
        if value and not ARN.fullmatch(value):
            # Not shown: somebody may have put the password there.
            raise SettingsInvalid(f"{where}.{key} must be the ARN of a secret (its value is not shown)")
    for key in ("entry", "database_role"):
        value = getattr(spec, key)
        if value and (not PLAIN_NAME.fullmatch(value) or value in RESERVED_NAMES):
            raise SettingsInvalid(
                f"{where}.{key} must match {PLAIN_NAME.pattern} and be none of {', '.join(RESERVED_NAMES)}, "
                f"got {value[:63]!r}"
            )
    _check_role(spec, where, settings)


def _check_role(spec: ClientSpec, where: str, settings: ProxySettings) -> None:
    uses_iam = settings.database_auth == "iam"
    wrong, right = ("database_role_secret_arn", "database_role")[:: 1 if uses_iam else -1]
    if getattr(spec, wrong):
        raise SettingsInvalid(
            f"{where}.{wrong} must not be set when {variable('database_auth')} is {settings.database_auth}: set {right}"
        )
    if spec.entry == settings.database_name and getattr(spec, right):
        raise SettingsInvalid(
            f"{where} has a {right} but no entry of its own: {spec.entry!r} is served with the proxy's own role; "
            "give it another entry"
        )
    if spec.entry != settings.database_name and not getattr(spec, right):
        raise SettingsInvalid(f"{where} has the entry {spec.entry!r} but no {right}: an entry has a role of its own")


def _check_together(specs: list[ClientSpec]) -> None:
    arns = [spec.secret_arn for spec in specs]
    for arn in arns:
        if arns.count(arn) > 1:
            raise SettingsInvalid(f"{variable('clients')} and {variable('client_secret_arn')} name {arn} twice")
    roles: dict[str, tuple[str, str]] = {}
    for spec in specs:
        role = (spec.database_role_secret_arn, spec.database_role)
        if roles.setdefault(spec.entry, role) != role:
            raise SettingsInvalid(
                f"{variable('clients')} gives the entry {spec.entry!r} two roles: one entry, one role; "
                "name the second entry differently"
            )
