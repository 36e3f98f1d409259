"""New certificate files and PgBouncer: taken at RELOAD for new connections, while those that are open go on."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.admin import CommandRefused
from emberpool_proxy.tls.authority import LEAF_VALID_FOR, Authority, utc_now

from .bare_pgbouncer import DATABASE, ROLE, BarePgbouncer, add_role, bare_pgbouncer
from .conftest import Proxy, wait_until

AUTHORITY, NEXT = Authority.make(utc_now()), Authority.make(utc_now())
NAME = "pool.example.com"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@dataclass
class Served:
    """A PgBouncer with TLS to clients and the files that it serves."""

    folder: Path
    running: BarePgbouncer

    def write(self, authority: Authority) -> None:
        write_pair(self.folder, authority.issue((NAME,), utc_now()))

    async def reload(self) -> None:
        console = await self.running.console()
        await console.reload()
        await console.close()

    def conninfo(self, authority: Authority, **changes: str) -> str:
        path = self.folder / f"{authority.not_after.timestamp()}.pem"
        path.write_text(authority.certificate_pem)
        given = {"host": NAME, "hostaddr": "127.0.0.1", "sslmode": "verify-full", "sslrootcert": str(path)}
        return self.running.conninfo(**{**given, **changes})


def write_pair(folder: Path, pair: tuple[str, str]) -> None:
    """As the agent does it: whole files by rename, the certificate first."""
    for name, text in zip(("client.crt", "client.key"), pair, strict=True):
        path = folder / f".{name}"
        path.touch(mode=0o600)
        path.write_text(text)
        give_to(server_user(), path)
        path.replace(folder / name)


@pytest.fixture
def served(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, bare_role: None) -> Iterator[Served]:
    with TempFolder("served") as folder:
        write_pair(folder, AUTHORITY.issue((NAME,), utc_now()))
        tls = {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": f"{folder}/client.crt",
            "client_tls_key_file": f"{folder}/client.key",
        }
        entry = f"host={postgres.host} port={postgres.port} dbname={DATABASE} user={ROLE}"
        with bare_pgbouncer(pgbouncer_program, {DATABASE: entry}, settings=tls) as running:
            yield Served(folder, running)


@pytest.fixture(scope="module")
def bare_role(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.conninfo()) as connection:
        found = connection.execute("select 1 from pg_roles where rolname = %s", (ROLE,)).fetchone()
    if not found:
        add_role(postgres)


async def test_new_connections_get_the_new_certificate_and_old_ones_go_on(served: Served) -> None:
    """A certificate of another CA is what a new client sees after RELOAD; the open connection works as before."""
    with psycopg.connect(served.conninfo(AUTHORITY)) as old:
        served.write(NEXT)
        await served.reload()
        with psycopg.connect(served.conninfo(NEXT)) as new:
            assert new.execute("select 1").fetchone() == (1,)
        assert old.execute("select 2").fetchone() == (2,)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(served.conninfo(AUTHORITY)).close()


async def test_pgbouncer_keeps_the_old_pair_when_the_new_one_does_not_match(served: Served) -> None:
    """Should a RELOAD fall between the two files, new connections still get the old certificate."""
    write_pair(served.folder, (AUTHORITY.issue((NAME,), utc_now())[0], NEXT.issue((NAME,), utc_now())[1]))
    with suppress(CommandRefused):  # from 1.25 on the console says so, too
        await served.reload()
    with psycopg.connect(served.conninfo(AUTHORITY)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    served.running.line_with("TLS configuration could not be reloaded, keeping old configuration")


def test_strict_client_accepts_the_certificate(served: Served) -> None:
    """Python 3.13 and later check a CA's and a server's extensions strictly; so may other drivers' libraries."""
    context = ssl.create_default_context(cadata=AUTHORITY.certificate_pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", served.running.port), timeout=5) as connection:
        connection.sendall(SSL_REQUEST)
        assert connection.recv(1) == b"S"
        with context.wrap_socket(connection, server_hostname=NAME) as encrypted:
            assert encrypted.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["LOCALHOST", "Pool.Example.COM", "127.0.0.1"])
def test_name_is_compared_without_case(served: Served, name: str) -> None:
    """A load balancer's name comes with capitals; certificates have small letters."""
    with psycopg.connect(served.conninfo(AUTHORITY, host=name)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


# --- the whole proxy ---


async def test_renewed_files_are_served_without_a_restart(make_proxy: Callable[..., Proxy], tmp_path: Path) -> None:
    """The operator's new pair is served by the same PgBouncer within some seconds; the open connection goes on."""
    write_pair(tmp_path, AUTHORITY.issue(("localhost",), utc_now()))
    given = {"client_tls_cert_file": f"{tmp_path}/client.crt", "client_tls_key_file": f"{tmp_path}/client.key"}
    proxy = make_proxy(**given, credentials_check_seconds=1).start_ready()
    for name, authority in (("old.pem", AUTHORITY), ("new.pem", NEXT)):
        (tmp_path / name).write_text(authority.certificate_pem)

    def connected() -> psycopg.Connection | None:
        try:
            return psycopg.connect(proxy.conninfo(sslrootcert=f"{tmp_path}/new.pem"))
        except psycopg.OperationalError as error:
            if "certificate verify failed" not in str(error):
                raise
            return None

    with psycopg.connect(proxy.conninfo(sslrootcert=f"{tmp_path}/old.pem")) as old:
        pid = proxy.pgbouncer_pid()
        write_pair(tmp_path, NEXT.issue(("localhost",), utc_now()))
        with wait_until("the new certificate was not served", connected) as new:
            assert new.execute("select 1").fetchone() == (1,)
        assert old.execute("select 2").fetchone() == (2,)
    assert proxy.pgbouncer_pid() == pid


def test_expired_certificate_ends_the_start_with_one_line(make_proxy: Callable[..., Proxy], tmp_path: Path) -> None:
    """Clients would refuse it: the proxy does not start, and names the file and the day."""
    write_pair(tmp_path, AUTHORITY.issue((), utc_now() - LEAF_VALID_FOR - timedelta(days=1)))
    given = {"client_tls_cert_file": f"{tmp_path}/client.crt", "client_tls_key_file": f"{tmp_path}/client.key"}
    proxy = make_proxy(**given).start()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 1
    (line,) = [line["message"] for line in proxy.log_lines() if line["level"] == "ERROR"]
    assert f"the certificate {tmp_path}/client.crt expired at" in line
    assert "Traceback" not in proxy.printed()


def test_unusable_database_authorities_end_the_start_with_one_line(make_proxy: Callable[..., Proxy]) -> None:
    """PgBouncer would start and fail at every connection: the proxy says so at once."""
    proxy = make_proxy(server_tls_mode="verify-full", server_tls_ca_file="/nowhere/bundle.pem").start()
    wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 1
    (line,) = [line["message"] for line in proxy.log_lines() if line["level"] == "ERROR"]
    assert "cannot read the database's authorities /nowhere/bundle.pem" in line
