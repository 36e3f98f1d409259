"""The password from Secrets Manager (simulated by moto) into a real login."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import boto3
import psycopg
import pytest
from moto import mock_aws

from emberpool import SecretUnavailable, warm_connection
from emberpool import settings as names

from .conftest import PASSWORD, ROLE, Context

REGION = "eu-west-1"


@pytest.fixture
def secrets_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws():
        yield boto3.client("secretsmanager")


@pytest.fixture
def handler_with(environment: Callable[..., None]) -> Callable[[str], Callable[..., str]]:
    def make(secret_arn: str) -> Callable[..., str]:
        environment(**{names.PASSWORD: None, names.SECRET_ARN: secret_arn})

        @warm_connection
        def handler(event: object, context: object, connection: psycopg.Connection) -> str:
            return connection.execute("select current_user").fetchone()[0]

        return handler

    return make


def create(client: object, value: str) -> str:
    return client.create_secret(Name="client", SecretString=value)["ARN"]


def test_login_comes_from_the_secret(secrets_manager: object, handler_with: Callable) -> None:
    """User and password of the JSON secret log in."""
    arn = create(secrets_manager, json.dumps({"username": ROLE, "password": PASSWORD}))
    assert handler_with(arn)({}, Context()) == ROLE


def test_rotated_secret_is_read_again_after_a_refused_login(secrets_manager: object, handler_with: Callable) -> None:
    """An environment that cached the old password reads the new one when its login is refused."""
    arn = create(secrets_manager, json.dumps({"username": ROLE, "password": "old"}))
    handler = handler_with(arn)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        handler({}, Context())
    secrets_manager.put_secret_value(SecretId=arn, SecretString=json.dumps({"username": ROLE, "password": PASSWORD}))
    assert handler({}, Context()) == ROLE


@pytest.mark.parametrize(
    ("value", "message"), [("hush-not-json", "does not hold JSON"), ('{"hush": 1}', "has no member 'password'")]
)
def test_secret_of_another_shape_is_one_clear_error(
    secrets_manager: object, handler_with: Callable, value: str, message: str
) -> None:
    """A secret that is not {"username", "password"} is refused without showing what it holds."""
    with pytest.raises(SecretUnavailable, match=message) as caught:
        handler_with(create(secrets_manager, value))({}, Context())
    assert "hush" not in str(caught.value)


def test_missing_secret_names_the_permission(secrets_manager: object, handler_with: Callable) -> None:
    """A secret that cannot be read gives AWS's code and the next step."""
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:nothing"
    with pytest.raises(SecretUnavailable, match=r"ResourceNotFoundException; .*secretsmanager:GetSecretValue"):
        handler_with(arn)({}, Context())
