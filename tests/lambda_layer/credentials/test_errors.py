"""What is wrong with a login is one clear error, and no secret is shown by it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from emberpool import SecretUnavailable
from emberpool.credentials import Credentials

from .conftest import REGION, Clock, SecretsExtension, assert_nowhere, create, secret, settings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hush-not-json {", "does not hold JSON"),
        ('{"hush": 1}', "has no member 'password'"),
        ('["hush"]', "has no member 'password'"),
        ('{"password": ["hush"]}', "has no member 'password'"),
        ('{"username": "hush", "password": ""}', "has no member 'password'"),
    ],
)
def test_secret_of_another_shape_is_one_clear_error(secrets_manager: Any, value: str, message: str) -> None:
    """A secret that is not RDS's JSON is refused; neither the error nor what it carries shows what it holds."""
    arn = create(secrets_manager, value)
    with pytest.raises(SecretUnavailable, match=message) as caught:
        Credentials(settings(secret_arn=arn)).login()
    assert arn in str(caught.value)
    assert_nowhere("hush", caught.value)


def test_secret_of_another_shape_from_the_extension_is_one_clear_error(
    secrets_extension: SecretsExtension,
) -> None:
    """The extension's answer is shown as little as Secrets Manager's."""
    secrets_extension.answer = json.dumps({"SecretString": "hush-not-json"}).encode()
    with pytest.raises(SecretUnavailable, match="does not hold JSON") as caught:
        Credentials(settings(secret_arn="client")).login()
    assert_nowhere("hush", caught.value)


def test_failed_renewal_of_an_iam_token_is_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired token is never handed out, however often its renewal fails."""
    credentials = Credentials(settings(auth="iam"))
    credentials.login()
    clock.now += 3600
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    for _ in range(2):
        with pytest.raises(SecretUnavailable):
            credentials.login()


def test_binary_secret_is_one_clear_error(secrets_manager: Any) -> None:
    """A secret without text says so."""
    arn = secrets_manager.create_secret(Name="client", SecretBinary=b"hush")["ARN"]
    with pytest.raises(SecretUnavailable, match="it is binary") as caught:
        Credentials(settings(secret_arn=arn)).login()
    assert_nowhere("hush", caught.value)


def test_missing_secret_names_the_permission(secrets_manager: Any) -> None:
    """A secret that cannot be read gives AWS's code and the next step."""
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:nothing"
    with pytest.raises(SecretUnavailable, match=r"ResourceNotFoundException; .*secretsmanager:GetSecretValue"):
        Credentials(settings(secret_arn=arn)).login()


def test_secrets_manager_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a way to Secrets Manager the error names that way."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:1")
    with pytest.raises(SecretUnavailable, match=r"EndpointConnectionError; .*interface endpoint") as caught:
        Credentials(settings(secret_arn="client")).login()
    assert_nowhere("hush", caught.value)


def test_password_is_in_no_repr(secrets_manager: Any) -> None:
    """What a log line or a debugger shows of a login, its credentials and what they keep has no password."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("hush"))))
    assert credentials.after_refusal(credentials.login()) is None
    assert "hush" not in f"{credentials} {credentials.login()} {vars(credentials)}"


def test_login_from_the_environment_loads_no_aws_library() -> None:
    """boto3 and http.client are only paid for by those who need them."""
    code = (
        "import sys; from emberpool.settings import LayerSettings; from emberpool.credentials import Credentials; "
        "Credentials(LayerSettings(host='h', user='u', password='p', sslmode='require')).login(); "
        "sys.exit(', '.join({'boto3', 'botocore', 'http.client'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
