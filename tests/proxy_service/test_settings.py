"""The proxy's table of EMBERPOOL_PROXY_ variables and what is rendered from it."""

from __future__ import annotations

import pytest

from emberpool_proxy.__main__ import main
from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.pgbouncer.config import CHANGED_DEFAULTS, EngineIdentity, render
from emberpool_proxy.settings import ProxySettings, SettingsInvalid, variable

VALID = {
    variable("database_host"): "db.internal",
    variable("database_name"): "app",
    variable("database_user"): "app_user",
    variable("database_password"): "hush-database",
    variable("client_user"): "function",
    variable("client_password"): "hush-client",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"database_host": ""}, "EMBERPOOL_PROXY_DATABASE_HOST must be set: host name of the PostgreSQL server"),
        ({"database_host": "db; drop"}, "EMBERPOOL_PROXY_DATABASE_HOST must match .*, got 'db; drop'"),
        ({"database_user": 'a"b'}, "EMBERPOOL_PROXY_DATABASE_USER must match"),
        ({"database_port": "x"}, "EMBERPOOL_PROXY_DATABASE_PORT must be a whole number, got 'x'"),
        ({"query_wait_seconds": "0"}, "EMBERPOOL_PROXY_QUERY_WAIT_SECONDS must be between 0.5 and 900, got 0"),
        ({"query_wait_seconds": "nan"}, "EMBERPOOL_PROXY_QUERY_WAIT_SECONDS must be between"),
        ({"server_tls_mode": "prefer"}, "must be one of disable, require, verify-ca, verify-full, got 'prefer'"),
        ({"client_user": "app_user"}, "must differ from EMBERPOOL_PROXY_DATABASE_USER"),
        ({"client_user": "emberpool_agent"}, "must not be one of pgbouncer, emberpool_agent"),
        ({"database_name": "pgbouncer"}, "must not be one of pgbouncer, emberpool_agent"),
        ({"health_port": "6432"}, "must differ, got 6432"),
        ({"client_tls_cert_file": "/a"}, "set both or none of"),
        ({"drain_seconds": "50", "stop_seconds": "40"}, "must be below EMBERPOOL_PROXY_STOP_SECONDS"),
        ({"database_password": "x" * 2048}, "must have at most 2047 bytes, got 2048"),
        ({"client_password": "two\nlines"}, "EMBERPOOL_PROXY_CLIENT_PASSWORD must be set and hold printable ASCII"),
        ({"client_prt": "3"}, "EMBERPOOL_PROXY_CLIENT_PRT; did you mean EMBERPOOL_PROXY_CLIENT_PORT"),
        ({"zzz": "3"}, "unknown setting EMBERPOOL_PROXY_ZZZ; docs/proxy.md lists the known ones"),
        ({"database_password": ""}, "set exactly one of EMBERPOOL_PROXY_DATABASE_PASSWORD, .*, got none"),
        ({"database_secret_arn": "arn:x"}, "got EMBERPOOL_PROXY_DATABASE_PASSWORD and EMBERPOOL_PROXY_DATABASE_SECRET"),
        ({"database_user": ""}, "EMBERPOOL_PROXY_DATABASE_USER must be set: role that the pool uses"),
        (
            {"database_auth": "iam"},
            "_DATABASE_PASSWORD must not be set when EMBERPOOL_PROXY_DATABASE_AUTH",
        ),
        ({"client_user": "", "client_password": ""}, "nobody could log in"),
        ({"client_secret_arn": "arn:x"}, "set only one of EMBERPOOL_PROXY_CLIENT_USER and"),
        ({"client_tls_secret_arn": "arn:x", "client_ca_secret_arn": "arn:y"}, "set at most one of"),
        ({"fleet_name": "a.b", "fleet_members": "h:1"}, "set only one of EMBERPOOL_PROXY_FLEET_NAME"),
        ({"max_server_connections": "2", "pgbouncer_processes": "3"}, "so that each process has one, got 2"),
    ],
)
def test_wrong_value_is_named(changed: dict[str, str], message: str) -> None:
    """Each wrong value gives one error with the variable, the value seen and what is allowed; never a secret."""
    with pytest.raises(SettingsInvalid, match=message) as caught:
        ProxySettings.from_environment({**VALID, **{variable(name): value for name, value in changed.items()}})
    assert "hush" not in str(caught.value)


def test_repr_hides_the_secrets() -> None:
    """Settings may be logged."""
    assert "hush" not in repr(ProxySettings.from_environment(VALID))


def test_every_changed_default_has_its_reason() -> None:
    """No default of PgBouncer is changed without saying why, and none twice."""
    assert all(len(reason) > 5 for _, _, reason in CHANGED_DEFAULTS)
    names = [name for name, _, _ in CHANGED_DEFAULTS]
    assert len(names) == len(set(names))


def test_database_line_has_no_password() -> None:
    """Passwords and verifiers stand in the auth file only: a password in the ini would break SCRAM logins."""
    snapshot = Snapshot(
        {"app_user": "hush-database"},
        (ClientUser("function", "hush-verifier", "app", "app_user"),),
        {"app": "app_user"},
    )
    identity = EngineIdentity(0, 0, "hush-agent")
    rendered = render(ProxySettings.from_environment(VALID), snapshot, identity)
    for name in ("pgbouncer.ini", "databases.ini", "hba.conf"):
        assert "hush" not in rendered.files[name]
    assert "user=app_user" in rendered.files["databases.ini"]
    assert "hush-database" in rendered.files["users.txt"]
    assert "hush" not in repr(rendered)


def test_config_command_prints_what_would_be_rendered_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m emberpool_proxy config` shows the files, with every secret masked."""
    for name, value in VALID.items():
        monkeypatch.setenv(name, value)
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    assert "pool_mode = transaction" in printed
    assert '"app_user" "…"' in printed
    assert "hush" not in printed
    assert "SCRAM-SHA-256$" not in printed
