"""The setting `clients`: what it may say, and the error for everything else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.credentials.client_specs import ClientSpec, client_specs
from emberpool_proxy.settings import SettingsInvalid

from .credential_settings import settings

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"


def specs(*elements: object, **given: object) -> tuple[ClientSpec, ...]:
    return client_specs(settings(clients=json.dumps(elements), **given))


def test_default_client_uses_the_entry_named_after_the_database() -> None:
    """Without `clients` there is one user, on the one entry, with the proxy's own role."""
    assert client_specs(settings()) == (ClientSpec("", "orders"),)
    assert client_specs(settings(client_secret_arn=f"{ARN}one", max_connections_per_client_user=7)) == (
        ClientSpec(f"{ARN}one", "orders", max_connections=7),
    )


def test_group_has_its_own_entry_role_and_limit() -> None:
    """An element names a secret, an entry, that entry's role and a limit."""
    element = {
        "secret_arn": f"{ARN}reports",
        "entry": "reporting",
        "database_role_secret_arn": f"{ARN}role",
        "max_connections": 50,
    }
    assert specs(element)[1] == ClientSpec(f"{ARN}reports", "reporting", f"{ARN}role", max_connections=50)


def test_two_groups_may_share_an_entry_and_its_role() -> None:
    """The entry belongs to the role, not to the user."""
    role = {"entry": "reporting", "database_role_secret_arn": f"{ARN}role"}
    assert len(specs({"secret_arn": f"{ARN}a", **role}, {"secret_arn": f"{ARN}b", **role})) == 3


def test_iam_roles_are_named_not_read_from_secrets() -> None:
    """Where the pool logs in with tokens, an entry's role is a name."""
    iam = {"database_auth": "iam", "server_tls_mode": "require"}
    found = specs({"secret_arn": f"{ARN}a", "entry": "reporting", "database_role": "reporter"}, **iam)
    assert found[1].database_role == "reporter"
    with pytest.raises(SettingsInvalid, match="database_role_secret_arn must not be set when .* is iam"):
        specs({"secret_arn": f"{ARN}a", "entry": "reporting", "database_role_secret_arn": f"{ARN}r"}, **iam)


REPORTING = {"secret_arn": f"{ARN}a", "entry": "reporting", "database_role_secret_arn": f"{ARN}role"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"must be a JSON list: .* at line 1, column 2"),
        ("{}", "must be a JSON list, got dict"),
        ("null", "must be a JSON list, got NoneType"),
        ('["x"]', r"\[0\] must be an object"),
        ('[{"secret_arn": "x", "secret_arn": "y"}]', "'secret_arn' twice in one element"),
        (json.dumps([{"secret": "x"}]), "unknown key 'secret'; known are secret_arn, entry"),
        (json.dumps([{}]), r"\[0\].secret_arn must be set"),
        (json.dumps([{"secret_arn": 5}]), r"secret_arn must be text, got int"),
        (json.dumps([{**REPORTING, "entry": "a b"}]), r"entry must match .* got 'a b'"),
        (json.dumps([{**REPORTING, "entry": "pgbouncer"}]), "be none of pgbouncer, emberpool_agent"),
        (json.dumps([{**REPORTING, "max_connections": -1}]), "between 0 and 8000, got -1"),
        (json.dumps([{**REPORTING, "max_connections": True}]), "between 0 and 8000, got true"),
        (json.dumps([{**REPORTING, "max_connections": 9000}]), "between 0 and 8000, got 9000"),
        (json.dumps([{"secret_arn": f"{ARN}a", "entry": "reporting"}]), "an entry has a role of its own"),
        (json.dumps([{**REPORTING, "entry": "orders"}]), "is served with the proxy's own role"),
        (json.dumps([{**REPORTING, "database_role": "x"}]), "must not be set when .* is password"),
        (json.dumps([REPORTING, REPORTING]), f"name {ARN}a twice"),
        (
            json.dumps([REPORTING, {**REPORTING, "secret_arn": f"{ARN}b", "database_role_secret_arn": f"{ARN}other"}]),
            "'reporting' two roles",
        ),
        (json.dumps([{"secret_arn": f"{ARN}{number}"} for number in range(201)]), "at most 200 elements, got 201"),
    ],
)
def test_wrong_list_is_one_clear_error(text: str, message: str) -> None:
    """Each mistake names the variable, the element and what is expected."""
    with pytest.raises(SettingsInvalid, match=rf"EMBERPOOL_PROXY_CLIENTS.*{message}"):
        client_specs(settings(clients=text))


def test_password_in_place_of_an_arn_is_not_shown() -> None:
    """Somebody who confuses the secret with its name does not find it in the log."""
    with pytest.raises(SettingsInvalid, match="must be the ARN of a secret") as raised:
        specs({"secret_arn": "hush-password"})
    assert "hush" not in str(raised.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_any_json_is_accepted_or_refused_with_our_error(value: object) -> None:
    """No JSON makes anything but specs or SettingsInvalid."""
    for text in (json.dumps(value), json.dumps([{"secret_arn": f"{ARN}a", "max_connections": value, "entry": value}])):
        with contextlib.suppress(SettingsInvalid):
            assert all(isinstance(spec, ClientSpec) for spec in client_specs(settings(clients=text)))
