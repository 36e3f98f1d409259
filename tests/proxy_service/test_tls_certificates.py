"""The certificate for clients without a network: what is accepted, who signs when, and what is said of wrong input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from emberpool_proxy.aws import SecretVersion
from emberpool_proxy.errors import CertificateUnusable, RunFolderUnusable, SecretUnreadable
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.authority import LEAF_VALID_FOR, Authority
from emberpool_proxy.tls.client_certificate import ClientCertificate
from emberpool_proxy.tls.pem import CertificateFiles, covers, read_files

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NAME = "pool.example.com"
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:certificate"


@dataclass
class Clock:
    """A clock that a test moves."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class OneSecret:
    """A secret's text, or the reason why it cannot be read."""

    text: str = ""
    failure: Exception | None = None
    versions: int = 1
    written: list[str] = field(default_factory=list)

    async def read_secret(self, arn: str) -> SecretVersion:  # noqa: ARG002 (there is only one)
        if self.failure:
            raise self.failure
        return SecretVersion(self.text, str(self.versions))

    async def put_secret(self, arn: str, value: str, request_token: str) -> None:  # noqa: ARG002 (as above)
        self.text = value
        self.versions += 1
        self.written.append(request_token)


def proxy_settings(**given: object) -> ProxySettings:
    return ProxySettings(
        **{
            "database_host": "db.internal",
            "database_name": "shop",
            "database_user": "owner",
            "database_password": "hush",
            "client_user": "function",
            "client_password": "hush",
            "client_tls_host_names": NAME,
            "credentials_check_seconds": 1.0,
            **given,
        }
    )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(NOW - DAY)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("emberpool_proxy"), "propagate", True)
    caplog.set_level(logging.WARNING, "emberpool_proxy")
    return lambda: [record.getMessage() for record in caplog.records]


def verify(files: CertificateFiles, host_name: str, at: datetime) -> None:
    """Verify as a strict TLS client would, at the time `at`; raises what is wrong."""
    chain = x509.load_pem_x509_certificates(files.certificate_pem.encode())
    store = x509.verification.Store(x509.load_pem_x509_certificates(files.ca_pem.encode()))
    builder = x509.verification.PolicyBuilder().store(store).time(at)
    builder.build_server_verifier(x509.DNSName(host_name)).verify(chain[0], chain[1:])


def rsa_pair(bits: int) -> tuple[str, str]:
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    return pem_of(builder.sign(key, hashes.SHA256())), key_pem(key)


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: object, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()


# --- signed by the deployment's CA ---


def test_issued_certificate_is_verified_by_strict_clients(authority: Authority) -> None:
    """A client with the CA verifies the name it was given and localhost, and refuses another name."""
    files = read_files(*authority.issue((NAME,), NOW), authority.certificate_pem, NOW, "it")
    for name in (NAME, "localhost"):
        verify(files, name, NOW + DAY)
    with pytest.raises(x509.verification.VerificationError):
        verify(files, "other.example.com", NOW + DAY)
    assert files.expires_at == NOW + LEAF_VALID_FOR


def test_issued_certificate_is_p256(authority: Authority) -> None:
    """CA and certificate have P-256 keys: the handshake is what a storm of logins costs."""
    for pem in (authority.certificate_pem, authority.issue((NAME,), NOW)[0]):
        key = x509.load_pem_x509_certificate(pem.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_names_of_all_kinds_are_covered(authority: Authority) -> None:
    """Upper case, addresses and names longer than a common name may be are alternative names."""
    long = "internal-" + "x" * 60 + ".elb.eu-west-1.amazonaws.com"
    certificate, _ = authority.issue(("Pool.Example.COM", "10.0.0.7", long), NOW)
    assert all(covers(certificate, name) for name in ("pool.example.com", "10.0.0.7", long, "127.0.0.1", "localhost"))


def test_no_leaf_outlives_its_authority() -> None:
    """A certificate that is issued near the end of its CA ends with it: no client would accept more."""
    old = Authority.make(NOW - 3620 * DAY)
    assert read_files(*old.issue((NAME,), NOW), old.certificate_pem, NOW, "it").expires_at == old.not_after


# --- given by the operator ---


def wrong_pairs() -> dict[str, tuple[Callable[[Authority], tuple[str, str]], str]]:
    def key(authority: Authority) -> str:
        return authority.issue((NAME,), NOW)[1]

    def reordered(authority: Authority) -> tuple[str, str]:
        certificate, own = authority.issue((NAME,), NOW)
        return authority.certificate_pem + certificate, own

    def encrypted(authority: Authority) -> tuple[str, str]:
        certificate, own = authority.issue((NAME,), NOW)
        return certificate, key_pem(serialization.load_pem_private_key(own.encode(), None), b"hush")

    return {
        "expired": (lambda a: a.issue((NAME,), NOW - 100 * DAY), r"expired at 2026-11-12 12:00:00 UTC; put a renewed"),
        "early": (lambda a: a.issue((NAME,), NOW + DAY), r"not valid before 2026-11-23 11:55:00 UTC, and it is 2026"),
        "key of another": (lambda a: (a.issue((NAME,), NOW)[0], key(a)), "belongs to another certificate"),
        "reordered": (reordered, "certificate 2 of 2; put the server's own certificate first"),
        "encrypted": (encrypted, "encrypted: give it without a passphrase"),
        "no certificate": (lambda a: ("hush", key(a)), "must begin with a certificate in PEM .* 4 characters"),
        "key first": (lambda a: (key(a), key(a)), "must begin with a certificate in PEM .* got a private key"),
        "no key": (lambda a: (a.issue((NAME,), NOW)[0], "hush"), "is not a private key in PEM"),
        "empty": (lambda a: ("", ""), "must begin with a certificate"),
        "short key": (lambda a: rsa_pair(1024), "OpenSSL refuses .*KEY_TOO_SMALL"),
    }


@pytest.mark.parametrize("name", list(wrong_pairs()))
def test_unusable_pair_is_one_clear_error(authority: Authority, name: str) -> None:
    """What is wrong, where it came from and what to do; never a part of a key."""
    make, message = wrong_pairs()[name]
    certificate, key = make(authority)
    with pytest.raises(CertificateUnusable, match=message) as caught:
        read_files(certificate, key, "", NOW, "the certificate /etc/pair.pem")
    assert "/etc/pair.pem" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_rsa_certificate_is_accepted() -> None:
    """Slower than P-256, but what many have."""
    assert read_files(*rsa_pair(2048), "", NOW, "it").expires_at == NOW + DAY


def test_root_of_the_chain_is_what_clients_verify_by(authority: Authority) -> None:
    """A self-signed certificate in the chain is the CA; without one it is not known here."""
    certificate, key = authority.issue((NAME,), NOW)
    assert read_files(certificate + authority.certificate_pem, key, "", NOW, "it").ca_pem == authority.certificate_pem
    assert read_files(certificate, key, "", NOW, "it").ca_pem == ""


def test_no_repr_shows_a_key(authority: Authority) -> None:
    """What a log line or a debugger shows has no private key."""
    files = read_files(*authority.issue((NAME,), NOW), authority.certificate_pem, NOW, "it")
    assert "PRIVATE" not in f"{files!r} {authority!r} {SecretVersion('PRIVATE', '1')!r}"


# --- watched ---


async def test_certificate_is_renewed_at_two_thirds_of_its_time() -> None:
    """Sixty of ninety days go by without a new one; the next look brings it, signed by the same CA."""
    clock = Clock()
    certificate = ClientCertificate(proxy_settings(), OneSecret(), clock)
    first = await certificate.load()
    clock.now += 59 * DAY
    assert await certificate.check() is None
    clock.now += DAY
    second = await certificate.check()
    assert second is not None
    assert second.expires_at == clock.now + LEAF_VALID_FOR
    assert (second.ca_pem, second.certificate_pem == first.certificate_pem) == (first.ca_pem, False)


async def test_restarted_task_gets_a_certificate_of_the_same_ca() -> None:
    """The CA is in the secret: a second task reads it and writes nothing."""
    secret = OneSecret('{"placeholder": "aB3"}')
    given_arn = proxy_settings(client_ca_secret_arn=ARN)
    first = await ClientCertificate(given_arn, secret, Clock()).load()
    second = await ClientCertificate(given_arn, secret, Clock()).load()
    assert second.ca_pem == first.ca_pem
    assert len(secret.written) == 1
    verify(second, NAME, NOW)


async def test_ca_out_of_reach_does_not_stop_the_renewal(said: Callable[[], list[str]]) -> None:
    """The CA that was read signs on while Secrets Manager refuses; the log says so."""
    clock, secret = Clock(), OneSecret()
    certificate = ClientCertificate(proxy_settings(client_ca_secret_arn=ARN), secret, clock)
    await certificate.load()
    secret.failure = SecretUnreadable("no way", arn=ARN, code="AccessDenied")
    clock.now += 70 * DAY
    renewed_files = await certificate.check()
    assert renewed_files is not None
    assert renewed_files.expires_at > clock.now + 80 * DAY
    assert any("keeping the CA that was read before: no way" in line for line in said())


def write_pair(folder: Path, pair: tuple[str, str]) -> dict[str, object]:
    for name, text in zip(("server.crt", "server.key"), pair, strict=True):
        (folder / name).write_text(text)
    return {"client_tls_cert_file": f"{folder}/server.crt", "client_tls_key_file": f"{folder}/server.key"}


async def test_changed_files_are_read_again(authority: Authority, tmp_path: Path) -> None:
    """A renewed pair in the same files is found at the next look, and only then."""
    certificate = ClientCertificate(
        proxy_settings(**write_pair(tmp_path, authority.issue((NAME,), NOW))), OneSecret(), Clock()
    )
    await certificate.load()
    assert await certificate.check() is None
    pair = authority.issue((NAME,), NOW)
    write_pair(tmp_path, pair)
    found = await certificate.check()
    assert found is not None
    assert found.certificate_pem == pair[0]


async def test_spoilt_files_leave_the_old_certificate_and_are_said_once_a_day(
    authority: Authority, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """The one that is served goes on; each look would otherwise be a line."""
    clock = Clock()
    given_files = write_pair(tmp_path, authority.issue((NAME,), NOW))
    certificate = ClientCertificate(proxy_settings(**given_files), OneSecret(), clock)
    files = await certificate.load()
    (tmp_path / "server.key").write_text("half a k")
    for _ in range(3):
        assert await certificate.check() is None
    lines = [line for line in said() if "is kept as it is: the private key of the certificate /" in line]
    assert len(lines) == 1
    clock.now += DAY
    await certificate.check()
    assert len([line for line in said() if "is kept as it is" in line]) == 2
    assert certificate.expires_at == files.expires_at


async def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there ends the start with its path."""
    given_files = {"client_tls_cert_file": f"{tmp_path}/no.crt", "client_tls_key_file": f"{tmp_path}/no.key"}
    with pytest.raises(CertificateUnusable, match=r"cannot read .*/no.crt: No such file"):
        await ClientCertificate(proxy_settings(**given_files), OneSecret(), Clock()).load()


async def test_certificate_in_a_secret_is_served_with_its_chain(authority: Authority) -> None:
    """Certificate, key and chain are members of the secret's JSON; a change of the secret is a new certificate."""
    certificate_pem, key = authority.issue((NAME,), NOW)
    members = {"certificate": certificate_pem, "private_key": key, "chain": authority.certificate_pem}
    secret = OneSecret(json.dumps(members))
    certificate = ClientCertificate(proxy_settings(client_tls_secret_arn=ARN), secret, Clock())
    files = await certificate.load()
    assert files.certificate_pem == certificate_pem + authority.certificate_pem
    assert files.ca_pem == authority.certificate_pem
    certificate_pem, key = authority.issue((NAME,), NOW)
    secret.text = json.dumps({**members, "certificate": certificate_pem, "private_key": key})
    assert await certificate.check() is not None


@pytest.mark.parametrize(
    "text", ["hush", '["hush"]', '{"certificate": "hush"}', '{"certificate": 1, "private_key": 2}']
)
async def test_certificate_secret_of_another_shape_is_one_clear_error(text: str) -> None:
    """The form that is expected is shown, what was found is not."""
    certificate = ClientCertificate(proxy_settings(client_tls_secret_arn=ARN), OneSecret(text), Clock())
    with pytest.raises(CertificateUnusable, match='must hold {"certificate": …, "private_key": …} in PEM') as caught:
        await certificate.load()
    assert "hush" not in str(caught.value)


async def test_certificate_for_other_names_is_told_at_start(
    authority: Authority, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """It is served all the same, as clients may verify less; the log names what verifying ones will miss."""
    given_files = write_pair(tmp_path, authority.issue(("other.example.com",), NOW))
    await ClientCertificate(proxy_settings(**given_files), OneSecret(), Clock()).load()
    assert any(f"the certificate does not name {NAME}" in line for line in said())


async def test_nearing_end_is_said_before_and_after_it(
    authority: Authority, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """Two weeks before its end, and when it has expired, the log says that clients will refuse it."""
    clock = Clock()
    given_files = write_pair(tmp_path, authority.issue((NAME,), NOW))
    certificate = ClientCertificate(proxy_settings(**given_files), OneSecret(), clock)
    await certificate.load()
    assert said() == []
    clock.now += 80 * DAY
    await certificate.check()
    assert any("expires at 2027-02-20" in line and "renew it" in line for line in said())
    clock.now += 20 * DAY
    assert await certificate.check() is None
    assert any("has expired at 2027-02-20" in line for line in said())


async def test_certificate_that_could_not_be_written_is_tried_again(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """A full tmpfs leaves the old one served and known; the next look hands the new one out again."""
    monkeypatch.setattr("emberpool_proxy.tls.client_certificate.FILES_CHECK_SECONDS", 0.01)
    given_files = write_pair(tmp_path, authority.issue((NAME,), NOW))
    certificate = ClientCertificate(proxy_settings(**given_files), OneSecret(), Clock())
    first = await certificate.load()
    pair = authority.issue((NAME,), NOW + timedelta(minutes=1))
    write_pair(tmp_path, pair)
    handed_out: list[CertificateFiles] = []
    served = asyncio.Event()

    async def serve(files: CertificateFiles) -> None:
        handed_out.append(files)
        if len(handed_out) == 1:
            assert certificate.expires_at == first.expires_at
            raise RunFolderUnusable("no space left")
        served.set()

    watching = asyncio.create_task(certificate.watch(serve))
    async with asyncio.timeout(10):
        await served.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert [files.certificate_pem for files in handed_out] == [pair[0], pair[0]]
    assert any("the new certificate is not served yet: no space left" in line for line in said())
