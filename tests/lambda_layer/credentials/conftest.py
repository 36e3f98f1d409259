"""Secrets Manager by moto, a clock, and what is read of the one by the other."""

from __future__ import annotations

import http.server
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import psycopg
import pytest
from moto import mock_aws

from emberpool import secret_sources, warm_connection
from emberpool import settings as names
from emberpool.credentials import AWSCURRENT
from emberpool.settings import LayerSettings

from ..conftest import ROLE

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def aws_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Lambda sets for a function with a role."""
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.setenv(name, REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush-session")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were read from Secrets Manager itself so far."""
    stages: list[str] = []
    original = secret_sources.from_secrets_manager

    def counted(secret_arn: str, stage: str) -> str:
        stages.append(stage)
        return original(secret_arn, stage)

    monkeypatch.setattr(secret_sources, "from_secrets_manager", counted)
    return stages


@dataclass
class Clock:
    """A wall clock that a test moves."""

    now: float = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr("emberpool.credentials.time", stopped)
    return stopped


@pytest.fixture
def secrets_manager() -> Iterator[Any]:
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


def secret(password: str, user: str = ROLE) -> str:
    return json.dumps({"username": user, "password": password, "engine": "postgres", "host": "db", "port": 5432})


def create(client: Any, value: str) -> str:
    return client.create_secret(Name="client", SecretString=value)["ARN"]


def put(client: Any, arn: str, password: str, stage: str = AWSCURRENT) -> None:
    client.put_secret_value(SecretId=arn, SecretString=secret(password), VersionStages=[stage])


def settings(**given: Any) -> LayerSettings:
    return LayerSettings(**{"host": "db.internal", "user": "function", "sslmode": "require", **given})


@dataclass
class SecretsExtension:
    """Stands for AWS's extension on localhost: answers from a cache that does not change."""

    answer: bytes = json.dumps({"SecretString": secret("from the extension")}).encode()
    status: int = 200
    asked: list[tuple[str, dict[str, list[str]], str | None]] = field(default_factory=list)


@pytest.fixture
def secrets_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsExtension]:
    extension = SecretsExtension()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            extension.asked.append((url.path, parse_qs(url.query), self.headers.get("X-Aws-Parameters-Secrets-Token")))
            self.send_response(extension.status)
            self.end_headers()
            self.wfile.write(extension.answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("PARAMETERS_SECRETS_EXTENSION_HTTP_PORT", str(server.server_port))
        yield extension
        server.shutdown()
        thread.join()


def assert_nowhere(word: str, error: BaseException) -> None:
    """Neither the error, its chain nor a local variable of its own frames holds the word."""
    chain: BaseException | None = error
    while chain is not None:
        assert word not in f"{chain!s} {chain!r} {vars(chain)}"
        for frame, _ in traceback.walk_tb(chain.__traceback__):
            if "emberpool" in frame.f_globals.get("__name__", "").partition(".")[0]:
                assert word not in repr(frame.f_locals), frame
        chain = chain.__cause__ or chain.__context__
