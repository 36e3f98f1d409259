"""Where the login comes from, and what is tried after a refused one. Secrets Manager is moto's, logins are real."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import psycopg
import pytest
from moto import mock_aws

from emberpool import SecretUnavailable, secret_sources, warm_connection
from emberpool import settings as names
from emberpool.credentials import AWSCURRENT, AWSPENDING, Credentials, Login
from emberpool.settings import LayerSettings, SettingsInvalid

from .conftest import PASSWORD, ROLE, Context

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


# --- the login itself ---


def test_login_comes_from_the_secret(secrets_manager: Any, handler_with: Callable) -> None:
    """User and password of the JSON secret log in."""
    assert handler_with(create(secrets_manager, secret(PASSWORD)))({}, Context()) == ROLE


def test_rotated_secret_is_read_again_after_a_refused_login(
    secrets_manager: Any, handler_with: Callable, clock: Clock
) -> None:
    """An environment that cached the old password reads the new one when its login is refused."""
    arn = create(secrets_manager, secret("old"))
    handler = handler_with(arn)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        handler({}, Context())
    put(secrets_manager, arn, PASSWORD)
    clock.now += 1
    assert handler({}, Context()) == ROLE


def test_secret_is_read_once(secrets_manager: Any, reads: list[str]) -> None:
    """Every attempt after the first begins with the login that is kept."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("one"))))
    assert [credentials.login() for _ in range(3)] == [Login(ROLE, "one")] * 3
    assert reads == [AWSCURRENT]


def test_secret_without_a_user_takes_the_settings_user(secrets_manager: Any) -> None:
    """A secret may hold only the password."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, '{"password": "one"}')))
    assert credentials.login() == Login("function", "one")


def test_secret_of_another_region_is_read_there(secrets_manager: Any) -> None:
    """The region stands in the ARN: a replica's secret need not be in the function's region."""
    arn = create(boto3.client("secretsmanager", region_name="us-east-2"), secret("far"))
    assert Credentials(settings(secret_arn=arn)).login().password == "far"


# --- after a refusal ---


def test_refused_login_is_followed_by_the_rotated_one(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """What AWSCURRENT holds by now is tried next, and kept."""
    arn = create(secrets_manager, secret("old"))
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    put(secrets_manager, arn, "new")
    clock.now += 3600
    assert credentials.after_refusal(old) == Login(ROLE, "new")
    assert credentials.login() == Login(ROLE, "new")
    assert reads == [AWSCURRENT, AWSCURRENT]


def test_pending_password_is_tried_when_the_current_one_is_refused(
    secrets_manager: Any, clock: Clock, reads: list[str]
) -> None:
    """In the middle of a rotation the database may have the new password before AWSCURRENT has it."""
    arn = create(secrets_manager, secret("old"))
    put(secrets_manager, arn, "next", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    clock.now += 3600
    assert credentials.after_refusal(old) == Login(ROLE, "next")
    assert reads == [AWSCURRENT, AWSCURRENT, AWSPENDING]


def test_attempt_ends_when_every_password_was_refused(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """Cached, current and pending are tried once each; then nothing is left, and the next attempt begins as usual."""
    arn = create(secrets_manager, secret("cached"))
    put(secrets_manager, arn, "pending", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    tried: list[str] = []
    login: Login | None = credentials.login()
    put(secrets_manager, arn, "current")
    clock.now += 3600
    while login is not None:
        tried.append(login.password)
        login = credentials.after_refusal(login)
    assert tried == ["cached", "current", "pending"]
    assert reads == [AWSCURRENT, AWSCURRENT, AWSPENDING]
    assert credentials.login().password == "current"


def test_slow_refusals_end_too(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """When each refused login takes longer than the time between two reads, each stage is read once for each."""
    arn = create(secrets_manager, secret("cached"))
    put(secrets_manager, arn, "pending", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    login: Login | None = credentials.login()
    refusals = 0
    while login is not None:
        clock.now += 5
        refusals += 1
        login = credentials.after_refusal(login)
    assert refusals == 2
    assert reads == [AWSCURRENT] + [AWSCURRENT, AWSPENDING] * 2


def test_storm_of_refused_logins_is_no_storm_on_secrets_manager(
    secrets_manager: Any, clock: Clock, reads: list[str]
) -> None:
    """A hundred invocations with a wrong password within a second read each stage once, and again after it."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("wrong"))))
    for _ in range(100):
        clock.now += 0.009
        assert credentials.after_refusal(credentials.login()) is None
    assert reads == [AWSCURRENT, AWSPENDING]
    clock.now += 1
    assert credentials.after_refusal(credentials.login()) is None
    assert reads == [AWSCURRENT, AWSPENDING] * 2


def test_secret_that_cannot_be_read_after_a_refusal_says_so(secrets_manager: Any, clock: Clock) -> None:
    """The reason why no other password could be tried is what the caller gets."""
    arn = create(secrets_manager, secret("old"))
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    secrets_manager.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    clock.now += 3600
    with pytest.raises(SecretUnavailable, match="ResourceNotFoundException"):
        credentials.after_refusal(old)


def test_local_password_has_no_successor() -> None:
    """A password from the environment cannot change: nothing else is tried."""
    credentials = Credentials(settings(password="hush"))
    assert credentials.login() == Login("function", "hush")
    assert credentials.after_refusal(credentials.login()) is None


# --- AWS's secrets extension ---


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


# --- IAM tokens ---


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


# --- what is wrong, and that no secret is shown ---


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


def assert_nowhere(word: str, error: BaseException) -> None:
    """Neither the error, its chain nor a local variable of its own frames holds the word."""
    chain: BaseException | None = error
    while chain is not None:
        assert word not in f"{chain!s} {chain!r} {vars(chain)}"
        for frame, _ in traceback.walk_tb(chain.__traceback__):
            if "emberpool" in frame.f_globals.get("__name__", "").partition(".")[0]:
                assert word not in repr(frame.f_locals), frame
        chain = chain.__cause__ or chain.__context__
