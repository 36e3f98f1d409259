"""The other sources of a login: AWS's secrets extension and RDS IAM tokens."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest

from emberpool import SecretUnavailable, secret_sources
from emberpool.credentials import AWSCURRENT, Credentials, Login
from emberpool.settings import SettingsInvalid

from ..conftest import ROLE
from .conftest import REGION, Clock, SecretsExtension, assert_nowhere, create, secret, settings

# --- AWS's secrets extension


def test_secret_comes_from_the_extension_when_it_is_there(
    secrets_manager: Any, secrets_extension: SecretsExtension, reads: list[str]
) -> None:
    """The extension is asked as AWS documents it, and Secrets Manager is not."""
    arn = create(secrets_manager, secret("direct"))
    assert Credentials(settings(secret_arn=arn)).login() == Login(ROLE, "from the extension")
    query = {"secretId": [arn], "versionStage": ["AWSCURRENT"]}
    assert secrets_extension.asked == [("/secretsmanager/get", query, "hush-session")]
    assert reads == []


def test_refused_login_is_not_read_from_the_extensions_cache(
    secrets_manager: Any, secrets_extension: SecretsExtension, reads: list[str]
) -> None:
    """The extension would give the refused password for minutes: Secrets Manager itself is asked."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("direct"))))
    assert credentials.after_refusal(credentials.login()) == Login(ROLE, "direct")
    assert reads == [AWSCURRENT]


@pytest.mark.parametrize(
    ("status", "answer"), [(400, b"not ready to serve traffic, please wait"), (200, b"<html>"), (200, b"[]")]
)
def test_extension_that_does_not_answer_is_passed_over(
    secrets_manager: Any, secrets_extension: SecretsExtension, status: int, answer: bytes
) -> None:
    """While the environment initialises the extension refuses: Secrets Manager is asked instead."""
    secrets_extension.status, secrets_extension.answer = status, answer
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("direct"))))
    assert credentials.login().password == "direct"


def test_extension_that_is_gone_is_passed_over(secrets_manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens on costs a refused connection, not the login."""
    monkeypatch.setenv("PARAMETERS_SECRETS_EXTENSION_HTTP_PORT", "1")
    assert Credentials(settings(secret_arn=create(secrets_manager, secret("direct")))).login().password == "direct"


def test_extension_is_recognised_by_its_file(
    secrets_manager: Any, secrets_extension: SecretsExtension, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Without the port's variable the extension's own file tells that it is there, on its default port."""
    port = os.environ["PARAMETERS_SECRETS_EXTENSION_HTTP_PORT"]
    monkeypatch.delenv("PARAMETERS_SECRETS_EXTENSION_HTTP_PORT")
    monkeypatch.setattr(secret_sources, "EXTENSION_PORT", port)
    monkeypatch.setattr(secret_sources, "EXTENSION", tmp_path / "extension")
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("direct"))))
    assert credentials.login().password == "direct"
    (tmp_path / "extension").touch()
    credentials = Credentials(settings(secret_arn="client"))
    assert credentials.login().password == "from the extension"


# --- IAM tokens


def test_iam_token_is_the_one_that_boto3_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, port, user, region, expiry and signature are those of generate_db_auth_token."""
    moment = botocore.auth.get_current_datetime()
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment)
    login = Credentials(settings(auth="iam", user="app user", port=5433)).login()
    expected = boto3.client("rds").generate_db_auth_token("db.internal", 5433, "app user", REGION)
    assert login == Login("app user", expected)
    query = parse_qs(urlsplit("//" + login.password).query)
    assert login.password.startswith("db.internal:5433/?")
    assert (query["Action"], query["DBUser"], query["X-Amz-Expires"]) == (["connect"], ["app user"], ["900"])


def test_iam_token_is_renewed_before_it_expires(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is kept for 13.5 of its 15 minutes; then another is made without asking. The wall clock counts."""
    made: list[str] = []
    monkeypatch.setattr(secret_sources, "iam_token", lambda *_: made.append("") or f"token {len(made)}")
    credentials = Credentials(settings(auth="iam"))
    seen = []
    for seconds in (0, 800, 5, 10, 3600):
        clock.now += seconds
        seen.append(credentials.login().password)
    assert seen == ["token 1", "token 1", "token 1", "token 2", "token 3"]


def test_refused_iam_token_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The role's credentials may have been renewed; a second refusal means that the login is not allowed."""
    made: list[str] = []
    monkeypatch.setattr(secret_sources, "iam_token", lambda *_: made.append("") or f"token {len(made)}")
    credentials = Credentials(settings(auth="iam"))
    second = credentials.after_refusal(credentials.login())
    assert second == Login("function", "token 2")
    assert credentials.after_refusal(second) is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [(("AWS_REGION", "AWS_DEFAULT_REGION"), "set AWS_REGION"), (("AWS_ACCESS_KEY_ID",), "NoCredentialsError|Partial")],
)
def test_iam_token_without_region_or_role_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], message: str
) -> None:
    """What a token needs and does not find is named."""
    for name in missing:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(SecretUnavailable, match=message) as caught:
        Credentials(settings(auth="iam")).login()
    assert_nowhere("hush", caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"auth": "kerberos"}, "EMBERPOOL_AUTH must be one of password, iam, got 'kerberos'"),
        ({"auth": "iam", "sslmode": "disable"}, "EMBERPOOL_SSLMODE must not be disable when EMBERPOOL_AUTH is iam"),
        ({"auth": "iam", "close_on_shutdown": "maybe"}, "EMBERPOOL_CLOSE_ON_SHUTDOWN must be one of on, off"),
        ({"auth": "iam", "sslmode": "disable", "name": "replica"}, "EMBERPOOL_REPLICA_SSLMODE must not be disable"),
    ],
)
def test_wrong_setting_is_named(changed: dict[str, str], message: str) -> None:
    """A setting that cannot be meant is refused where it is read."""
    with pytest.raises(SettingsInvalid, match=message):
        settings(**changed)


def test_iam_wins_over_an_inherited_secret() -> None:
    """A named database inherits the secret of the plain variables: with IAM it is not read."""
    credentials = Credentials(settings(auth="iam", secret_arn="client"))
    assert "X-Amz-Signature" in credentials.login().password
