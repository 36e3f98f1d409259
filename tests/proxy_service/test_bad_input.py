"""Wrong settings, files and surroundings: one clear line and a defined exit each, and never a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import CLIENT_PASSWORD, DATABASE_PASSWORD, Proxy, wait_until

MakeProxy = Callable[..., Proxy]
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:pool-AbCdEf"
OTHER_SECRET = "other-secret-in-a-json-list"
FAILED, USAGE = 1, 2


@pytest.fixture
def watched_proxy(make_proxy: MakeProxy) -> Iterator[MakeProxy]:
    """Makes proxies; after the test, everything that they printed is searched for every secret that they had."""
    made: list[Proxy] = []

    def make(**overrides: object) -> Proxy:
        made.append(make_proxy(**overrides))
        return made[-1]

    yield make
    for proxy in made:
        for secret in secrets_of(proxy):
            assert secret not in proxy.printed()


def secrets_of(proxy: Proxy) -> set[str]:
    known = {CLIENT_PASSWORD, DATABASE_PASSWORD, DATABASE_PASSWORD.replace('"', '""'), OTHER_SECRET, "PRIVATE KEY"}
    run = Path(proxy.setting("run_folder"))
    for path in (run / "agent.json", run / "0" / "users.txt"):
        if path.exists():  # each second quoted word is a password or a verifier
            known |= {word for word in path.read_text().split('"') if len(word) > 20 and " " not in word}
    return known - {proxy.setting("client_user")}


def end_of(proxy: Proxy, timeout: float = 20.0) -> tuple[int, list[str]]:
    """Wait until the proxy has ended; return its exit code and its ERROR lines."""
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None, timeout)
    assert "Traceback" not in proxy.printed()
    return proxy.exit_code(), errors_of(proxy)


def errors_of(proxy: Proxy) -> list[str]:
    return [line["message"] for line in proxy.log_lines() if line["level"] == "ERROR"]


def start_in(proxy: Proxy, *wrapper: str) -> Proxy:
    """Start the proxy by a program that becomes it."""
    with proxy.log_path.open("wb") as log:
        command = [*wrapper, sys.executable, "-m", "emberpool_proxy"]
        proxy.process = subprocess.Popen(command, env=proxy.environment, stdout=log, stderr=log)
    return proxy


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"poool_size": 3}, "unknown setting EMBERPOOL_PROXY_POOOL_SIZE"),
        ({"database_name": "a" * 64}, "EMBERPOOL_PROXY_DATABASE_NAME must match"),
        ({"client_user": "a$b"}, "EMBERPOOL_PROXY_CLIENT_USER must match"),
        ({"reset_policy": "sometimes"}, "must be one of tracked, always, got 'sometimes'"),
        ({"tracked_parameters": "search_path; select 1"}, "EMBERPOOL_PROXY_TRACKED_PARAMETERS must match"),
        ({"drain_seconds": 100, "stop_seconds": 10}, "must be below EMBERPOOL_PROXY_STOP_SECONDS (10.0)"),
        ({"database_secret_arn": ARN}, "set exactly one of EMBERPOOL_PROXY_DATABASE_PASSWORD"),
        ({"database_auth": "iam"}, "EMBERPOOL_PROXY_DATABASE_PASSWORD must not be set"),
        ({"client_secret_arn": ARN}, "set only one of EMBERPOOL_PROXY_CLIENT_USER"),
        ({"clients": f'["{OTHER_SECRET}"'}, "EMBERPOOL_PROXY_CLIENTS must be a JSON list"),
        ({"clients": f'{{"password": "{OTHER_SECRET}"}}'}, "EMBERPOOL_PROXY_CLIENTS must be a JSON list, got dict"),
        ({"pgbouncer_processes": 3, "max_server_connections": 2}, "so that each process has one, got 2"),
        ({"fleet_name": "pool.internal", "fleet_members": "10.0.0.1:8080"}, "EMBERPOOL_PROXY_FLEET_NAME"),
    ],
)
def test_contradictory_settings_end_with_one_line(
    watched_proxy: MakeProxy, overrides: dict[str, object], message: str
) -> None:
    """Settings that are unknown, out of range or at odds with each other end the proxy with code 2 and one line."""
    code, errors = end_of(watched_proxy(**overrides).start())
    assert code == USAGE
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("name", ["a" * 63, "0.a-b_C"])
def test_name_that_the_settings_allow_is_one_for_pgbouncer(watched_proxy: MakeProxy, name: str) -> None:
    """The longest name and the oddest characters that pass as a setting are names in PgBouncer's files, too."""
    proxy = watched_proxy(
        database_name=name, client_user=name, max_connections_per_client_user=1, query_wait_seconds=1
    ).start_ready()
    # The database is not there: a client that hears of it has been let in.
    with pytest.raises(psycopg.OperationalError, match="does not exist|query_wait_timeout"):
        psycopg.connect(proxy.conninfo(user=name, dbname=name), connect_timeout=20)


def test_wrong_database_password_is_refused_and_logged(watched_proxy: MakeProxy) -> None:
    """With a wrong password for the database the proxy runs on, says so in the log and refuses clients in time."""
    proxy = watched_proxy(database_password="wrong-" + OTHER_SECRET, query_wait_seconds=1).start_ready()

    def refused_and_logged() -> bool:
        with pytest.raises(
            psycopg.OperationalError, match="password authentication failed|query_wait_timeout|server login"
        ):
            psycopg.connect(proxy.conninfo(), connect_timeout=20)
        return "password authentication failed" in proxy.printed()

    wait_until("the wrong password was not logged", refused_and_logged)
    assert proxy.exit_code() is None


def certificate_files(folder: Path, valid: timedelta, key: ec.EllipticCurvePrivateKey | None = None) -> dict[str, str]:
    """Write a self-signed certificate that is valid for that long from now on; `key` for another's key file."""
    own_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, own_key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + valid)
        .sign(own_key, hashes.SHA256())
    )
    files = {"client_tls_cert_file": folder / "proxy.crt", "client_tls_key_file": folder / "proxy.key"}
    files["client_tls_cert_file"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files["client_tls_key_file"].write_bytes(
        (key or own_key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return {setting: str(path) for setting, path in files.items()}


def expired(folder: Path) -> dict[str, str]:
    return certificate_files(folder, timedelta(days=-1))


def somebody_elses_key(folder: Path) -> dict[str, str]:
    return certificate_files(folder, timedelta(days=9), ec.generate_private_key(ec.SECP256R1()))


def swapped(folder: Path) -> dict[str, str]:
    files = certificate_files(folder, timedelta(days=9))
    return dict(zip(files, reversed(files.values()), strict=True))


@pytest.mark.parametrize(
    ("files", "message"),
    [(expired, "expired at"), (somebody_elses_key, "key"), (swapped, "must begin with a certificate in PEM")],
)
def test_unusable_certificate_ends_the_start(
    watched_proxy: MakeProxy, tmp_path: Path, files: Callable[[Path], dict[str, str]], message: str
) -> None:
    """A certificate that has expired or does not belong to its key ends the proxy with code 1 and one line."""
    code, errors = end_of(watched_proxy(**files(tmp_path)).start())
    assert code == FAILED
    assert len(errors) == 1
    assert message in errors[0]


def start_on_small_tmpfs(proxy: Proxy, size_bytes: int) -> Proxy:
    """Start the proxy with a tmpfs of so many bytes as its run folder, which only it sees."""
    run = Path(proxy.setting("run_folder"))
    run.mkdir()
    as_user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    if subprocess.run(["unshare", *as_user, "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace: a chroot, or a container without CAP_SYS_ADMIN")
    mount = f'mount -t tmpfs -o size={size_bytes} none "{run}" && exec "$@"'
    return start_in(proxy, "unshare", *as_user, "--mount", "sh", "-c", mount, "sh")


@pytest.mark.parametrize("room_bytes", [0, 3 * 4096])
def test_full_tmpfs_ends_the_start(
    watched_proxy: MakeProxy, pgbouncer_program: PgbouncerProgram, room_bytes: int
) -> None:
    """A run folder without room for the files ends the proxy with code 1 and the file that did not fit."""
    # Root's proxy copies it there.
    program_bytes = 0 if os.geteuid() else pgbouncer_program.path.stat().st_size
    size_bytes = program_bytes // 4096 * 4096 + 4096 + room_bytes if room_bytes else 4096
    code, errors = end_of(start_on_small_tmpfs(watched_proxy(), size_bytes))
    assert code == FAILED
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "/run/" in errors[0]


@contextmanager
def full_run_folder(proxy: Proxy) -> Iterator[None]:
    """Leave no room in the run folder of a proxy that runs on a tmpfs of its own."""
    filler = Path(f"/proc/{proxy.process.pid}/root{proxy.setting('run_folder')}/filler")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


def test_tmpfs_that_fills_up_later_is_said_and_survived(
    watched_proxy: MakeProxy, database: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A new password that cannot be written is an ERROR line, clients go on; with room again it is taken over."""
    role, old, new = "role_on_small_tmpfs", "first-secret-of-this-role", "second-secret-of-this-role"
    password_file = tmp_path / "password"
    password_file.write_text(old)
    with psycopg.connect(database.conninfo(), autocommit=True) as superuser:
        superuser.execute(f"create role {role} login password '{old}'")
        proxy = watched_proxy(
            database_user=role,
            database_password="",
            database_password_file=password_file,
            credentials_check_seconds=1,
            client_tls_mode="disable",  # its CA is in the tmpfs, where only the proxy sees it
        )
        start_on_small_tmpfs(proxy, 8 * 2**20)
        wait_until("the proxy did not become ready", lambda: proxy.status("/readyz") == 200)
        with psycopg.connect(proxy.conninfo(sslmode="disable"), autocommit=True) as client:
            client.execute("select 1")
            with full_run_folder(proxy):
                superuser.execute(f"alter role {role} password '{new}'")
                password_file.write_text(new)
                wait_until("the full tmpfs was not logged", lambda: any("cannot write" in e for e in errors_of(proxy)))
                assert client.execute("select 1").fetchone() == (1,)
            superuser.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,))

            def is_served() -> bool:
                try:
                    with psycopg.connect(proxy.conninfo(sslmode="disable"), autocommit=True) as good:
                        good.execute("select 1")
                except psycopg.OperationalError:
                    return False
                return True

            wait_until("the new password was never taken over", is_served)
    for secret in (old, new):
        assert secret not in proxy.printed()
