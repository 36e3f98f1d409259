"""TLS from the proxy to the database, a real PostgreSQL behind a real PgBouncer, and each way that it is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.program import find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.database_login import log_in
from emberpool_proxy.errors import CertificateUnusable
from emberpool_proxy.pgbouncer.log_lines import Event, ServerUnreachable, event_of
from emberpool_proxy.settings import ProxySettings, SettingsInvalid
from emberpool_proxy.tls.authority import AUTHORITY_VALID_FOR, Authority, utc_now
from emberpool_proxy.tls.database_tls import DatabaseTlsFaults, check_database_tls

from .bare_pgbouncer import DATABASE, ROLE, ROLE_PASSWORD, BarePgbouncer, add_role, bare_pgbouncer
from .conftest import Proxy

AUTHORITY, OTHER = Authority.make(utc_now()), Authority.make(utc_now())
ELSEWHERE = "127.0.0.2"  # listened on, but not in the certificate
QUERY_WAIT_SECONDS = "0.7"


def settings(**given: object) -> ProxySettings:
    return ProxySettings(
        **{
            "database_host": "db.internal",
            "database_name": "shop",
            "database_user": "owner",
            "database_password": "hush",
            "client_user": "function",
            "client_password": "hush",
            **given,
        }
    )


def write(path: Path, text: str, mode: int) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    give_to(server_user(), path)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TempFolder("tls") as folder:
        write(folder / "ca.pem", AUTHORITY.certificate_pem, 0o644)
        write(folder / "other.pem", OTHER.certificate_pem, 0o644)
        yield folder


@pytest.fixture(scope="module")
def tls_postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL whose certificate is AUTHORITY's, for this machine's name and its first loopback address."""
    program = find_postgres()
    if not program.has_tls:
        pytest.skip("the wheel's PostgreSQL has no TLS: install the system's (apt-get install postgresql)")
    certificate, key = AUTHORITY.issue((), utc_now())
    given = {
        "ssl": "on",
        "ssl_cert_file": str(write(folder / "server.crt", certificate, 0o600)),
        "ssl_key_file": str(write(folder / "server.key", key, 0o600)),
        "listen_addresses": f"127.0.0.1,{ELSEWHERE}",
    }
    with EmbeddedPostgres(max_connections=20, settings=given, program=program) as server:
        add_role(server)
        yield server


@pytest.fixture(scope="module")
def plain_postgres(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """A PostgreSQL without TLS; nobody logs in there."""
    return postgres


@contextmanager
def pool(
    program: PgbouncerProgram, server: EmbeddedPostgres, authorities: Path, host: str = "127.0.0.1"
) -> Iterator[BarePgbouncer]:
    given = {
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": str(authorities),
        "query_wait_timeout": QUERY_WAIT_SECONDS,
        "server_login_retry": "0.1",
    }
    entry = f"host={host} port={server.port} dbname={DATABASE} user={ROLE}"
    with bare_pgbouncer(program, {DATABASE: entry}, settings=given) as running:
        yield running


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("emberpool_proxy"), "propagate", True)
    caplog.set_level(logging.WARNING, "emberpool_proxy")
    return lambda: [record.getMessage() for record in caplog.records]


def test_database_is_verified_and_encrypted(
    pgbouncer_program: PgbouncerProgram, tls_postgres: EmbeddedPostgres, folder: Path
) -> None:
    """With the right authority and name the database sees a TLS connection."""
    with (
        pool(pgbouncer_program, tls_postgres, folder / "ca.pem") as running,
        psycopg.connect(running.conninfo()) as connection,
    ):
        row = connection.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
    assert row == (True,)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "wrong authority",
            "is not signed by an authority in {folder}/other.pem, or has expired: let EMBERPOOL_PROXY_",
        ),
        (
            "wrong name",
            "is for another name (name `127.0.0.2' not present in server certificate): let EMBERPOOL_PROXY_",
        ),
        ("no TLS", "db.internal has no TLS: switch it on there"),
        ("authorities are gone", "{folder}/gone.pem cannot be read any more: put the file back"),
    ],
)
def test_fault_is_refused_and_said_once(
    request: pytest.FixtureRequest,
    pgbouncer_program: PgbouncerProgram,
    folder: Path,
    said: Callable[[], list[str]],
    fault: str,
    words: str,
) -> None:
    """Nothing goes to a database that is not verified; the client waits its time, the log has one line of advice."""
    server = request.getfixturevalue("plain_postgres" if fault == "no TLS" else "tls_postgres")
    file = {"wrong authority": "other.pem", "authorities are gone": "gone.pem"}.get(fault, "ca.pem")
    host = ELSEWHERE if fault == "wrong name" else "127.0.0.1"
    faults = DatabaseTlsFaults(settings(server_tls_ca_file=str(folder / file)))
    with pool(pgbouncer_program, server, folder / file, host) as running:
        events: list[Event] = []
        while sum(isinstance(event, ServerUnreachable) for event in events) <= 2:  # a slow machine tries less often
            with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
                psycopg.connect(running.conninfo()).close()
            events = [event for line in running.log_lines() if (event := event_of(line))]
    for event in events:
        faults.saw(0, event)
    (line,) = said()
    assert words.format(folder=folder) in line
    assert "nothing is sent unverified" in line


def test_lasting_fault_is_said_again_each_minute(said: Callable[[], list[str]]) -> None:
    """PgBouncer tries many times a second; the log has the advice once a minute."""
    now = 0.0
    faults = DatabaseTlsFaults(settings(), lambda: now)
    for seconds in range(0, 130, 10):
        now = float(seconds)
        faults.saw(0, ServerUnreachable("", "", "", "server refused SSL"))
    assert len(said()) == 3


def test_whole_proxy_waits_for_a_database_that_it_can_verify(
    tls_postgres: EmbeddedPostgres, folder: Path, make_proxy: Callable[..., Proxy]
) -> None:
    """With a wrong bundle it runs, refuses in time and says why once; with the right one a query is verified."""
    given = {"server_tls_mode": "verify-full", "database_port": tls_postgres.port, "query_wait_seconds": 1}
    given |= {"database_name": DATABASE, "database_user": ROLE, "database_password": ROLE_PASSWORD}
    wrong = make_proxy(**given, server_tls_ca_file=folder / "other.pem").start_ready()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(wrong.conninfo(dbname=DATABASE), connect_timeout=10).close()
    advice = [line for line in wrong.log_lines() if "is not signed by an authority in" in line["message"]]
    assert [line["level"] for line in advice] == ["ERROR"]
    assert wrong.exit_code() is None
    right = make_proxy(**given, server_tls_ca_file=folder / "ca.pem").start_ready()
    with psycopg.connect(right.conninfo(dbname=DATABASE)) as connection:
        row = connection.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
    assert row == (True,)


# --- before PgBouncer starts ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            r"cannot read the database's authorities /.*/bundle.pem: No such file or directory; let EMBERPOOL_PROXY_",
        ),
        ("", "OpenSSL finds no certificate in it"),
        ("<html>not a bundle</html>", "OpenSSL finds no certificate in it"),
        (OTHER.key_pem, "OpenSSL finds no certificate in it"),
        (Authority.make(utc_now() - AUTHORITY_VALID_FOR - timedelta(days=1)).certificate_pem, "have all expired, 1 of"),
    ],
)
def test_authorities_that_cannot_be_used_end_the_start(tmp_path: Path, text: str | None, message: str) -> None:
    """PgBouncer would start with them, and then fail at each connection."""
    path = tmp_path / "bundle.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CertificateUnusable, match=message):
        check_database_tls(settings(server_tls_ca_file=str(path), run_as_user="root"))


def test_bundle_with_comments_and_some_expired_authorities_is_accepted(tmp_path: Path) -> None:
    """Bundles of providers have names between the certificates, in any encoding, and keep old ones."""
    old = Authority.make(utc_now() - AUTHORITY_VALID_FOR - timedelta(days=1))
    path = tmp_path / "bundle.pem"
    path.write_bytes("# Tőrök CA\n".encode("latin2") + (old.certificate_pem + "\nÁ\n" + OTHER.certificate_pem).encode())
    check_database_tls(settings(server_tls_ca_file=str(path), run_as_user="root"))
    assert len(x509.load_pem_x509_certificates(path.read_bytes())) == 2


def test_file_that_pgbouncers_user_may_not_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started as root, PgBouncer runs as somebody else: what root can read is not what counts."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    path = folder / "mine.pem"
    path.touch(mode=0o600)
    path.write_text(AUTHORITY.certificate_pem)
    with pytest.raises(CertificateUnusable, match=r"PgBouncer runs as daemon, who may not read it"):
        check_database_tls(settings(server_tls_ca_file=str(path), run_as_user="daemon"))


# --- weaker modes ---


@pytest.mark.parametrize("mode", ["disable", "require", "verify-ca"])
def test_unverified_database_elsewhere_must_be_accepted(mode: str) -> None:
    """A weaker mode to another machine is refused with two ways out; nobody gets there by a copied setting alone."""
    message = rf"SERVER_TLS_MODE is {mode}, so that nobody would verify that db.internal .*SERVER_TLS_UNVERIFIED to acc"
    with pytest.raises(SettingsInvalid, match=message):
        settings(server_tls_mode=mode)
    assert settings(server_tls_mode=mode, server_tls_unverified="accepted").server_tls_mode == mode


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "/run/postgresql"])
def test_database_on_this_machine_needs_no_tls(host: str, said: Callable[[], list[str]]) -> None:
    """Nobody stands in between: no setting has to be confirmed, and nothing is warned of."""
    check_database_tls(settings(database_host=host, server_tls_mode="disable"))
    assert said() == []


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "10.0.0.5", "localhost.example.com", "::2"])
def test_name_that_only_looks_local_is_elsewhere(host: str) -> None:
    """Only addresses of the loopback network and `localhost` itself are this machine."""
    with pytest.raises(SettingsInvalid, match="nobody would verify"):
        settings(database_host=host, server_tls_mode="require")


def test_accepted_weakness_is_warned_of_at_each_start(said: Callable[[], list[str]]) -> None:
    """What was accepted stays visible."""
    check_database_tls(settings(server_tls_mode="require", server_tls_unverified="accepted"))
    (line,) = said()
    assert "the database's identity is not verified (EMBERPOOL_PROXY_SERVER_TLS_MODE is require)" in line


@pytest.mark.parametrize("names", ["pool example", "a,b;c", "pool.internal,*.inter nal", "x" * 254])
def test_name_that_no_certificate_can_have_is_refused(names: str) -> None:
    """The names for the certificate are DNS names and addresses."""
    with pytest.raises(SettingsInvalid, match="EMBERPOOL_PROXY_CLIENT_TLS_HOST_NAMES must match"):
        settings(client_tls_host_names=names)


async def test_agents_login_does_not_look_for_a_client_certificate(
    tls_postgres: EmbeddedPostgres, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder whose certificate cannot be read is no reason to fail, as it is none for PgBouncer."""
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "postgresql.crt").write_text("no certificate")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = settings(
        database_host="127.0.0.1",
        database_port=tls_postgres.port,
        server_tls_mode="verify-full",
        server_tls_ca_file=str(folder / "ca.pem"),
    )
    login = (ROLE, ROLE_PASSWORD)
    connection = await log_in(psycopg.AsyncConnection, given, login, application_name="test", database=DATABASE)
    async with connection:
        assert connection.pgconn.ssl_in_use
