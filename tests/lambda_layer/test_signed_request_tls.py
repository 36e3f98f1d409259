"""The layer's own request to Secrets Manager over real TLS: moto checks its signature, a CA of ours is moto's."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto import mock_aws
from moto.core.authorization import enable_iam_authentication
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from emberpool import SecretUnavailable, secret_sources
from emberpool.signed_request import secret_text

REGION = "eu-west-1"
HUSH = "hush-the-secret"
POLICY = """{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "*"}]}"""


class Authority:
    """A CA that exists for one test run, with its certificate in a file."""

    def __init__(self, name: str, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._folder = folder
        uses = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        usage = dict.fromkeys((*uses, "encipher_only", "decipher_only"), False)
        usage |= {"key_cert_sign": True, "crl_sign": True}
        self.file = folder / f"{name}.pem"
        certificate = self._signed(self._name, self._key, x509.BasicConstraints(True, 0), x509.KeyUsage(**usage))
        self.file.write_bytes(certificate)

    def server_context(self, address: str = "127.0.0.1") -> ssl.SSLContext:
        """Return a server's side of TLS with a certificate for the address."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = self._folder / f"{address}.chain.pem"
        chain.write_bytes(pem + self._signed(x509.Name([]), key, x509.BasicConstraints(False, None), names))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        # What Python 3.13 wants by default (VERIFY_X509_STRICT).
        extra = [
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
        ]
        for extension in (*extensions, *extra):
            is_critical = not isinstance(extension, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier)
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class SecretsManager:
    """moto behind TLS, and the requests that came through."""

    authority: Authority
    other_authority: Authority
    secret_arn: str
    keys: dict[str, str]
    port: int = 0
    requests: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretsManager]:
    with mock_aws():
        arn = boto3.client("secretsmanager", REGION).create_secret(Name="client", SecretString=HUSH)["ARN"]
        keys = keys_of_a_role()
        folder = tmp_path_factory.mktemp("authorities")
        running = SecretsManager(Authority("ours", folder), Authority("another", folder), arn, keys)
        yield from serving(running)


def serving(running: SecretsManager) -> Iterator[SecretsManager]:
    app = DomainDispatcherApplication(create_backend_app)

    def counted(environment: Any, start_response: Any) -> Any:
        running.requests.append(environment.get("HTTP_X_AMZ_TARGET", environment["PATH_INFO"]))
        return app(environment, start_response)

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    context = running.authority.server_context()
    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Silent, ssl_context=context)
    running.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield running
    server.shutdown()
    thread.join()
    server.server_close()


def keys_of_a_role() -> dict[str, str]:
    """Return what Lambda gives a function with a role that may read secrets."""
    iam = boto3.client("iam", REGION)
    role = iam.create_role(RoleName="function", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.put_role_policy(RoleName="function", PolicyName="reads", PolicyDocument=POLICY)
    given = boto3.client("sts", REGION).assume_role(RoleArn=role, RoleSessionName="function")["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["SessionToken"],
    }


@pytest.fixture
def manager(running: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsManager]:
    """Secrets Manager as a function on Lambda sees it, with every signature and permission checked."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    variables = {**running.keys, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}
    variables |= {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1", "AWS_ENDPOINT_URL_SECRETS_MANAGER": running.endpoint}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    running.requests.clear()
    with enable_iam_authentication():
        yield running


@pytest.fixture
def trust(manager: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Authority], None]:
    def set_variable(variable: str, authority: Authority) -> None:
        monkeypatch.setenv(variable, str(authority.file))

    return set_variable


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_secret_is_read_over_verified_tls(
    manager: SecretsManager, trust: Callable[[str, Authority], None], variable: str
) -> None:
    """The CA of AWS_CA_BUNDLE, or of OpenSSL's own variable, is trusted, and the signature is a right one."""
    trust(variable, manager.authority)
    assert secret_text(manager.secret_arn, "AWSCURRENT", 5) == HUSH
    assert manager.requests == ["secretsmanager.GetSecretValue"]


def test_request_with_a_wrong_signature_is_refused(
    manager: SecretsManager, trust: Callable[[str, Authority], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does check: with another secret key neither the layer's request nor boto3's gets the secret."""
    trust("AWS_CA_BUNDLE", manager.authority)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    assert secret_text(manager.secret_arn, "AWSCURRENT", 5) is None
    with pytest.raises(SecretUnavailable, match="403"):
        secret_sources.from_secrets_manager(manager.secret_arn, "AWSCURRENT")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE", None])
def test_certificate_of_another_authority_is_refused(
    manager: SecretsManager, trust: Callable[[str, Authority], None], variable: str | None
) -> None:
    """Neither the layer's request nor boto3's after it reaches a server that the CA does not vouch for."""
    if variable is not None:
        trust(variable, manager.other_authority)
    assert secret_text(manager.secret_arn, "AWSCURRENT", 5) is None
    with pytest.raises(SecretUnavailable, match=r"certificate is not to be trusted.*AWS_CA_BUNDLE") as caught:
        secret_sources.from_secrets_manager(manager.secret_arn, "AWSCURRENT")
    assert manager.requests == []
    assert manager.keys["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_bundle_wins_over_what_the_system_trusts(
    manager: SecretsManager, trust: Callable[[str, Authority], None]
) -> None:
    """As with botocore, AWS_CA_BUNDLE replaces the system's certificates and does not add to them."""
    trust("SSL_CERT_FILE", manager.authority)
    trust("AWS_CA_BUNDLE", manager.other_authority)
    assert secret_text(manager.secret_arn, "AWSCURRENT", 5) is None
    assert manager.requests == []


def test_certificate_for_another_host_is_refused(
    manager: SecretsManager, trust: Callable[[str, Authority], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right CA is not enough: the certificate must be the endpoint's."""
    trust("AWS_CA_BUNDLE", manager.authority)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"https://localhost:{manager.port}")
    with pytest.raises(SecretUnavailable, match="certificate is not to be trusted"):
        secret_sources.from_secrets_manager(manager.secret_arn, "AWSCURRENT")
    assert manager.requests == []


def test_missing_bundle_is_one_clear_error(manager: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there is no reason to trust anybody."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(SecretUnavailable):
        secret_sources.from_secrets_manager(manager.secret_arn, "AWSCURRENT")
    assert manager.requests == []
