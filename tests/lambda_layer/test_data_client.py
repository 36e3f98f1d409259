"""boto3's own client for the data endpoint: a small HTTPS server checks its signatures, Secrets Manager is moto's."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, SSLError
from moto import mock_aws

import emberpool
from emberpool import SecretUnavailable, SettingsInvalid, data_client
from emberpool import settings as names
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import THROTTLED, DataError
from emberpool_proxy.data_endpoint.requests import parse
from emberpool_proxy.data_endpoint.signature import SignedRequest, Verifier
from emberpool_proxy.tls.authority import Authority, utc_now

AUTHORITY, OTHER = Authority.make(utc_now()), Authority.make(utc_now())
REGION = "eu-west-1"


class Endpoint:
    """Verifies and parses as the real one does, and answers each statement with a 1."""

    def __init__(self) -> None:
        self.passwords: list[str] = ["first"]
        self.seen: list[tuple[str, dict[str, str]]] = []  # who called, and with which headers
        self.failures: list[DataError] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.server.server_port}"

    def serve_tls(self, authority: Authority, folder: Path) -> None:
        """Answer with a certificate of this authority from now on."""
        certificate, key = authority.issue((), utc_now())
        (folder / "chain.pem").write_text(key + certificate)
        if self.context is None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(folder / "chain.pem")
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
        self.context.load_cert_chain(folder / "chain.pem")

    def callers(self, name: str) -> list[Caller]:
        return [Caller(name, "main", password) for password in self.passwords] if name == "app" else []

    def look(self) -> bool:
        return False

    def answer(self, path: str, headers: Any, body: bytes) -> dict[str, Any]:
        found: dict[str, list[str]] = {}
        for name, value in headers.items():
            found.setdefault(name.lower(), []).append(value)
        request = SignedRequest("POST", path, "", ReceivedHeaders(found), body)
        caller = Verifier(self).caller(request, time.time())
        if self.failures:
            raise self.failures.pop()
        self.seen.append((caller.password, {name: value for name, (value,) in found.items()}))
        parse(path, body)
        return {"records": [[{"longValue": 1}]], "numberOfRecordsUpdated": 0}


class ReceivedHeaders(dict[str, list[str]]):
    def get_all(self, name: str, /) -> list[str]:
        return self.get(name, [])


def handler_of(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, kind = 200, ""
            try:
                answer = endpoint.answer(self.path, self.headers, body)
            except DataError as error:
                status, kind, answer = error.status, error.kind, {"message": error.message}
            content = json.dumps(answer).encode()
            self.send_response(status)
            if kind:
                self.send_header("x-amzn-errortype", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    endpoint.server.handle_error = lambda *_: None  # type: ignore[method-assign] (a client that trusts nobody hangs up)
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.02,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in [name for name in os.environ if name.startswith((names.PREFIX, "AWS_"))]:
        monkeypatch.delenv(name)

    def set_variables(**given: str) -> None:
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def local(endpoint: Endpoint, variables: Callable[..., None]) -> None:
    """As `emberpool up` has it: no Secrets Manager, no TLS, this machine only."""
    variables(EMBERPOOL_DATA_ENDPOINT=endpoint.url, EMBERPOOL_USER="app", EMBERPOOL_PASSWORD="first")


@pytest.fixture
def secret(endpoint: Endpoint, variables: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., None]]:
    """As infra has it: a secret with login and CA; call it to write another version."""
    endpoint.serve_tls(AUTHORITY, tmp_path)
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "of-the-role")
    variables(**keys, AWS_DEFAULT_REGION=REGION)
    with mock_aws():
        manager = boto3.client("secretsmanager", REGION)
        arn = manager.create_secret(Name="client", SecretString="{}")["ARN"]

        def put(password: str, authority: Authority | None = AUTHORITY, **more: Any) -> None:
            value = {"username": "app", "password": password}
            if authority is not None:
                # Each first one is longer than the next: what is left of it would be seen.
                value["ca_certificate"] = authority.certificate_pem + "\n" * (authority is AUTHORITY) * 50
            manager.put_secret_value(SecretId=arn, SecretString=json.dumps(value), **more)

        put("first")
        variables(EMBERPOOL_DATA_ENDPOINT=endpoint.url, EMBERPOOL_USER="ignored", EMBERPOOL_SECRET_ARN=arn)
        yield put


def one(client: Any) -> int:
    found: int = client.execute_statement(sql="select 1")["records"][0][0]["longValue"]
    return found


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read a moment ago is read again: a test does not wait for the second in which it is believed."""
    monkeypatch.setattr("emberpool.credentials.SHORTEST_REFETCH_SECONDS", 0)


def test_local_client_needs_no_secret_and_no_region(endpoint: Endpoint, local: None) -> None:
    """Three variables are enough on a developer's machine, and the ARNs may be left out."""
    assert one(data_client()) == 1
    assert endpoint.seen[0][0] == "first"


def test_endpoint_may_be_an_option(endpoint: Endpoint, local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to the call wins, as do the ARNs of a call and the user's own config."""
    monkeypatch.delenv(names.DATA_ENDPOINT)
    client = data_client(endpoint_url=endpoint.url, region_name="eu-north-1", config=Config(read_timeout=7))
    arn = "arn:aws:rds:eu-west-1:123456789012:cluster:mine"
    client.execute_statement(sql="select 1", resourceArn=arn, secretArn=arn)
    assert "/eu-north-1/rds-data/" in endpoint.seen[0][1]["authorization"]
    assert (client.meta.config.read_timeout, client.meta.config.connect_timeout) == (7, 3)
    assert client.meta.config.retries["total_max_attempts"] == 5


def test_named_database_has_an_endpoint_of_its_own(
    endpoint: Endpoint, local: None, variables: Callable[..., None]
) -> None:
    """EMBERPOOL_<NAME>_DATA_ENDPOINT wins over the plain variable; the login is inherited."""
    variables(EMBERPOOL_DATA_ENDPOINT="http://127.0.0.1:1", EMBERPOOL_REPLICA_HOST="replica.example")
    variables(EMBERPOOL_REPLICA_DATA_ENDPOINT=endpoint.url)
    assert one(data_client("replica")) == 1


def test_login_and_authority_come_from_the_secret(endpoint: Endpoint, secret: Callable[..., None]) -> None:
    """The one secret that infra writes is enough: user, password, the CA by which the endpoint is verified."""
    client = data_client()
    assert endpoint.seen == []
    assert one(client) == 1
    headers = endpoint.seen[0][1]
    assert "Credential=app/" in headers["authorization"]
    assert f"/{REGION}/rds-data/" in headers["authorization"]
    assert "x-amz-security-token" not in headers


def test_invocation_id_is_signed(endpoint: Endpoint, local: None) -> None:
    """What the endpoint knows a resend by cannot be exchanged on the way, and it is there once."""
    one(data_client())
    headers = endpoint.seen[0][1]
    assert "amz-sdk-invocation-id" in headers["authorization"]
    assert len(headers["amz-sdk-invocation-id"]) == 36


def test_resends_keep_their_invocation_id(endpoint: Endpoint, local: None) -> None:
    """A throttled call is sent again by boto3 and answered; it is signed anew under the same id."""
    endpoint.failures = [DataError(THROTTLED, "too many")]
    response = data_client().execute_statement(sql="select 1")
    assert response["ResponseMetadata"]["RetryAttempts"] == 1
    assert endpoint.seen[0][1]["amz-sdk-request"].endswith("attempt=2; max=5")


def test_rotated_password_is_found_in_the_same_call(
    endpoint: Endpoint, secret: Callable[..., None], no_pause: None
) -> None:
    """A caller sees nothing of a rotation: the refused call is signed with the new password and sent once more."""
    client = data_client()
    one(client)
    secret("second")
    endpoint.passwords = ["second"]
    assert one(client) == 1
    assert one(client) == 1
    assert [password for password, _ in endpoint.seen] == ["first", "second", "second"]


def test_pending_password_is_tried_last(endpoint: Endpoint, secret: Callable[..., None], no_pause: None) -> None:
    """The endpoint may know the next password before the secret calls it current."""
    client = data_client()
    one(client)
    secret("second", None, VersionStages=["AWSPENDING"])
    endpoint.passwords = ["second"]
    assert one(client) == 1
    secret("third")
    secret("fourth", None, VersionStages=["AWSPENDING"])
    endpoint.passwords = ["fourth"]
    assert one(client) == 1


def test_threads_that_are_refused_together_all_go_on(
    endpoint: Endpoint, secret: Callable[..., None], no_pause: None
) -> None:
    """One client for several threads: all see the rotation at once, none gets an error."""
    client = data_client()
    one(client)
    secret("second")
    endpoint.passwords = ["second"]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: one(client), range(24))) == [1] * 24


def test_wrong_password_is_one_typed_error(endpoint: Endpoint, secret: Callable[..., None], no_pause: None) -> None:
    """When no version of the secret is accepted the caller gets the model's own exception; a later call works again."""
    client = data_client()
    endpoint.passwords = ["another"]
    with pytest.raises(client.exceptions.AccessDeniedException, match="signature does not match"):
        one(client)
    with pytest.raises(ClientError) as caught:
        one(client)
    assert "first" not in str(caught.value)
    secret("second")
    secret("pending", None, VersionStages=["AWSPENDING"])
    with pytest.raises(ClientError):
        one(client)
    endpoint.passwords = ["second"]
    assert client.execute_statement(sql="select 1")["ResponseMetadata"]["RetryAttempts"] == 0


def test_new_authority_is_found_in_the_same_call(
    endpoint: Endpoint, secret: Callable[..., None], tmp_path: Path, no_pause: None
) -> None:
    """A proxy with a new CA: the secret is read again, and the call goes on."""
    client = data_client(config=Config(retries={"total_max_attempts": 2}))
    one(client)
    in_memory = Path(client._endpoint.http_session._verify)
    assert in_memory.read_text().strip() == AUTHORITY.certificate_pem.strip()
    client._endpoint.http_session._manager.clear()  # a new connection, as after any pause
    endpoint.serve_tls(OTHER, tmp_path)
    secret("first", OTHER)
    assert one(client) == 1
    assert in_memory.read_text() == OTHER.certificate_pem


def test_endpoint_of_another_authority_is_not_spoken_to(
    endpoint: Endpoint, secret: Callable[..., None], tmp_path: Path
) -> None:
    """Whoever has no certificate of the pool's CA gets no statement."""
    endpoint.serve_tls(OTHER, tmp_path)
    with pytest.raises(SSLError, match="certificate verify failed"):
        one(data_client(config=Config(retries={"total_max_attempts": 1})))
    assert endpoint.seen == []


def test_secret_without_authority_is_one_clear_error(
    endpoint: Endpoint, secret: Callable[..., None], no_pause: None
) -> None:
    """The proxy has not written its CA yet: nothing is sent, and once it has, the same client works."""
    secret("first", None)
    client = data_client()
    with pytest.raises(SecretUnavailable, match="no CA certificate in the secret"):
        one(client)
    secret("first")
    assert one(client) == 1


def test_file_of_the_setting_wins(
    endpoint: Endpoint, secret: Callable[..., None], variables: Callable[..., None], tmp_path: Path
) -> None:
    """Who names a file trusts that one, whatever the secret has."""
    (tmp_path / "own.pem").write_text(AUTHORITY.certificate_pem)
    secret("first", OTHER)
    variables(EMBERPOOL_SSLROOTCERT=str(tmp_path / "own.pem"))
    assert one(data_client()) == 1


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_require_verifies_nothing(
    endpoint: Endpoint, secret: Callable[..., None], variables: Callable[..., None]
) -> None:
    """The mode is what the setting says, as for a connection: a CA in the secret does not turn it into another."""
    secret("first", OTHER)
    variables(EMBERPOOL_SSLMODE="require")
    assert one(data_client()) == 1


def test_authority_is_closed_with_its_client(secret: Callable[..., None]) -> None:
    """Clients that come and go leave no open file behind."""
    import gc

    one(data_client())
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        data_client()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"EMBERPOOL_DATA_ENDPOINT": ""}, "EMBERPOOL_DATA_ENDPOINT must be set"),
        ({"EMBERPOOL_DATA_ENDPOINT": "pool.example:8443"}, "must be https://HOST:PORT without a path"),
        ({"EMBERPOOL_DATA_ENDPOINT": "https://pool.example/prod"}, "must be https://HOST:PORT without a path"),
        ({"EMBERPOOL_DATA_ENDPOINT": "http://pool.example:8080"}, "must begin with https://"),
        ({"EMBERPOOL_DATA_ENDPOINT": "http://127.0.0.1.example.com"}, "must begin with https://"),
        ({"EMBERPOOL_PASSWORD": ""}, "EMBERPOOL_SECRET_ARN"),
        ({"EMBERPOOL_DATA_ENDPOINT": "https://pool.example"}, "EMBERPOOL_SSLROOTCERT"),
    ],
)
def test_wrong_setting_is_named(
    local: None, variables: Callable[..., None], changed: dict[str, str], message: str
) -> None:
    """A wrong deployment fails where the client is made, and says which variable to mend."""
    variables(**changed)
    with pytest.raises(SettingsInvalid, match=message):
        data_client()


def test_bare_import_stays_light_and_the_client_needs_no_driver(local: None) -> None:
    """`import emberpool` loads no boto3, and data_client() no psycopg: a bundle for it carries no driver."""
    program = (
        "import sys, emberpool; assert 'boto3' not in sys.modules; sys.modules['psycopg'] = None\n"
        "assert emberpool.data_client().execute_statement(sql='select 1')['records']\n"
        "assert emberpool.data_client() is not None\n"  # the name is still the function
        "assert issubclass(emberpool.SecretUnavailable, Exception)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_client_is_botos_own(local: None) -> None:
    """Every operation, exception and paginator is there: it is the class that boto3 makes."""
    client = data_client()
    plain = botocore.session.Session().create_client("rds-data", REGION)
    assert set(client.meta.method_to_api_mapping) == set(plain.meta.method_to_api_mapping)
    assert "data_client" in dir(emberpool)
