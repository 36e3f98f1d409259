"""The proxy is verified by the CA beside the password: the server is a real PgBouncer, Secrets Manager moto's."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from moto import mock_aws
from tests.proxy_service.bare_pgbouncer import CLIENT, CLIENT_PASSWORD, BarePgbouncer, bare_pgbouncer
from tests.proxy_service.bare_pgbouncer import DATABASE as BARE_DATABASE
from tests.proxy_service.bare_pgbouncer import add_role as add_bare_role

from emberpool import ConnectionUnavailable, warm_connection
from emberpool import settings as names
from emberpool.authority_file import authority_file
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.tls.authority import Authority, utc_now

from .conftest import Context

AUTHORITY, OTHER = Authority.make(utc_now()), Authority.make(utc_now())
ELSEWHERE = "127.0.0.2"  # listened on, but not in the certificate


@pytest.fixture(scope="module")
def proxy(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[BarePgbouncer]:
    """A PgBouncer that takes TLS only, with a certificate of AUTHORITY for this machine."""
    add_bare_role(postgres)
    with TempFolder("authority") as folder:
        for name, text in zip(("client.crt", "client.key"), AUTHORITY.issue((), utc_now()), strict=True):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text)
            give_to(server_user(), folder / name)
        tls = {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": f"{folder}/client.crt",
            "client_tls_key_file": f"{folder}/client.key",
            "listen_addr": f"127.0.0.1,{ELSEWHERE}",
        }
        entry = f"host={postgres.host} port={postgres.port} dbname={BARE_DATABASE} user=bare_role"
        with bare_pgbouncer(pgbouncer_program, {BARE_DATABASE: entry}, settings=tls) as running:
            yield running


@pytest.fixture
def secrets_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.setenv(name, "eu-west-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with mock_aws():
        yield boto3.client("secretsmanager")


def secret(authority: Authority | None, password: str = CLIENT_PASSWORD) -> str:
    value = {"username": CLIENT, "password": password}
    return json.dumps(value if authority is None else {**value, "ca_certificate": authority.certificate_pem})


@pytest.fixture
def handler(
    secrets_manager: Any, environment: Callable[..., None], proxy: BarePgbouncer
) -> Callable[..., Callable[[], bool]]:
    """Makes a function as infra configures it: host, secret and verify-full, but no file with a CA."""

    def make(text: str, **changed: str) -> Callable[[], bool]:
        arn = secrets_manager.create_secret(Name="client", SecretString=text)["ARN"]
        environment(
            **{
                names.PORT: str(proxy.port),
                names.DATABASE: BARE_DATABASE,
                names.PASSWORD: None,
                names.SECRET_ARN: arn,
                names.SSLMODE: "verify-full",
                names.CONNECT_RETRY_SECONDS: "0",
                **changed,
            }
        )

        @warm_connection
        def invoked(event: object, context: object, connection: psycopg.Connection) -> bool:
            return connection.pgconn.ssl_in_use

        return lambda: invoked({}, Context())

    return make


def put(secrets_manager: Any, text: str, stage: str = "AWSCURRENT") -> None:
    secrets_manager.put_secret_value(SecretId="client", SecretString=text, VersionStages=[stage])


def refusal(invoke: Callable[[], bool]) -> str:
    with pytest.raises(ConnectionUnavailable, match="nothing has run") as caught:
        invoke()
    assert CLIENT_PASSWORD not in str(caught.value)
    return str(caught.value)


def test_function_verifies_the_proxy_by_the_secrets_ca(handler: Callable[..., Callable[[], bool]]) -> None:
    """Nothing but the secret is needed for verify-full."""
    assert handler(secret(AUTHORITY))() is True


@pytest.fixture
def broken_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder where libpq finds a client certificate that it cannot read; also root could not."""
    path = tmp_path / ".postgresql" / "postgresql.crt"
    path.parent.mkdir()
    path.write_text("no certificate")
    monkeypatch.setenv("HOME", str(tmp_path))
    return path


@pytest.mark.usefixtures("broken_certificate")
def test_home_folder_is_not_searched_for_a_client_certificate(handler: Callable[..., Callable[[], bool]]) -> None:
    """A home that the function's user cannot read, as /root in a container image, is no reason to fail."""
    assert handler(secret(AUTHORITY))() is True


def test_client_certificate_can_be_named(
    handler: Callable[..., Callable[[], bool]], broken_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGSSLCERT is libpq's own variable: what it names is used, and told when it is broken."""
    monkeypatch.setenv("PGSSLCERT", str(broken_certificate))
    assert str(broken_certificate) in refusal(handler(secret(AUTHORITY)))


def test_second_generation_beside_the_first_is_trusted(handler: Callable[..., Callable[[], bool]]) -> None:
    """The secret may hold several CAs: while one takes over from the other, both are good."""
    both = json.loads(secret(OTHER))
    both["ca_certificate"] += AUTHORITY.certificate_pem
    assert handler(json.dumps(both))() is True


def test_proxy_with_another_ca_gets_no_login(handler: Callable[..., Callable[[], bool]], proxy: BarePgbouncer) -> None:
    """Somebody else's certificate is refused, and the proxy sees a handshake that was given up, never a login."""
    seen = len([line for line in proxy.log_lines() if f"user={CLIENT}" in line])
    assert "certificate verify failed" in refusal(handler(secret(OTHER)))
    assert len([line for line in proxy.log_lines() if f"user={CLIENT}" in line]) == seen


def test_new_ca_is_read_when_the_known_one_does_not_verify(
    handler: Callable[..., Callable[[], bool]], secrets_manager: Any
) -> None:
    """An environment that read the secret before the CA changed reads it again, within the same invocation."""
    invoke = handler(secret(OTHER))
    refusal(invoke)
    put(secrets_manager, secret(AUTHORITY))
    # As if the last reading were longer ago: within a second the secret is believed to be unchanged.
    _forget_readings()
    assert invoke() is True


def _forget_readings() -> None:
    from emberpool import declared

    declared.shared_connection(names.LayerSettings.from_environment())._credentials._readings.clear()


def test_name_that_the_certificate_does_not_have_is_refused(handler: Callable[..., Callable[[], bool]]) -> None:
    """The right CA is not enough: it must be this proxy's name."""
    assert "does not match host name" in refusal(handler(secret(AUTHORITY), **{names.HOST: ELSEWHERE}))


def test_secret_without_a_ca_says_who_writes_it(
    handler: Callable[..., Callable[[], bool]], secrets_manager: Any
) -> None:
    """Before the proxy's first start there is none: one clear error, and success once it is there."""
    invoke = handler(secret(None))
    message = refusal(invoke)
    assert "there is no CA certificate in the secret arn:aws:" in message
    assert "the proxy writes it when it starts" in message
    assert "EMBERPOOL_SSLROOTCERT" in message
    put(secrets_manager, secret(AUTHORITY))
    _forget_readings()
    assert invoke() is True


def test_pending_password_is_tried_with_the_current_ca(
    handler: Callable[..., Callable[[], bool]], secrets_manager: Any
) -> None:
    """The proxy writes the CA beside the current password only: in a rotation the pending one goes with it."""
    invoke = handler(secret(AUTHORITY, password="old"))
    put(secrets_manager, secret(None), "AWSPENDING")
    assert invoke() is True


def test_file_of_the_setting_wins(handler: Callable[..., Callable[[], bool]], tmp_path: Path) -> None:
    """Who names a file trusts that one, whatever the secret has."""
    (tmp_path / "own.pem").write_text(OTHER.certificate_pem)
    invoke = handler(secret(AUTHORITY), **{names.SSLROOTCERT: f"{tmp_path}/own.pem"})
    assert "certificate verify failed" in refusal(invoke)


def test_require_verifies_nothing(handler: Callable[..., Callable[[], bool]]) -> None:
    """The mode is what the setting says: a CA in the secret does not turn `require` into something else."""
    assert handler(secret(OTHER), **{names.SSLMODE: "require"})() is True


def test_folder_that_cannot_be_written_is_one_clear_error(
    handler: Callable[..., Callable[[], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that filled or closed /tmp reads why it gets no connection."""
    monkeypatch.setenv("TMPDIR", "/proc/self/nowhere")
    message = refusal(handler(secret(AUTHORITY)))
    assert "the CA's certificate cannot be written to /proc/self/nowhere/emberpool-" in message
    assert "No such file" in message


# --- the file ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_file_is_private_and_written_once(folder: Path) -> None:
    """It has the content, only this user may touch it, and the second call finds it."""
    path = Path(authority_file("one"))
    assert (path.parent, path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (folder, "one", 0o600)
    inode = path.stat().st_ino
    assert authority_file("one") == str(path)
    assert path.stat().st_ino == inode
    assert len(list(folder.iterdir())) == 1


def test_file_that_was_removed_or_changed_is_written_again(folder: Path) -> None:
    """A function may clean /tmp between two invocations, and what is in the file is looked at each time."""
    path = Path(authority_file("one"))
    path.unlink()
    authority_file("one")
    path.write_text("one more")
    assert Path(authority_file("one")).read_text() == "one"


@pytest.mark.parametrize("kind", ["symlink", "writable by others", "fifo"])
def test_file_that_somebody_prepared_is_replaced(folder: Path, kind: str) -> None:
    """A link, a pipe or a file that others may write is not trusted, even with the right content."""
    path = Path(authority_file("one"))
    if kind == "symlink":
        target = path.rename(folder / "elsewhere")
        path.symlink_to(target)
    elif kind == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.chmod(0o622)
    authority_file("one")
    assert path.is_file()
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
