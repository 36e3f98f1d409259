"""Which authorities PgBouncer reads at each login at the database: the whole proxy, and a PostgreSQL with TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.postgres.program import find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.config import bundle_path, narrows_authorities
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.authority import Authority, utc_now
from emberpool_proxy.tls.database_authorities import MOST_KEPT, authorities_to_keep
from emberpool_proxy.tls.database_chain import Bundle, Trusted, verified_chain

from .bare_pgbouncer import DATABASE, ROLE, ROLE_PASSWORD, add_role
from .conftest import Proxy, wait_until

FIRST, SECOND, STRANGER = (Authority.make(utc_now()) for _ in range(3))
OTHERS = tuple(Authority.make(utc_now()) for _ in range(MOST_KEPT))
CONNECTIONS = 12


def settings(**given: object) -> ProxySettings:
    return ProxySettings(
        **{
            "database_host": "127.0.0.1",
            "database_name": DATABASE,
            "database_user": ROLE,
            "database_password": ROLE_PASSWORD,
            "client_user": "function",
            "client_password": "hush",
            **given,
        }
    )


@dataclass
class Database:
    """A PostgreSQL whose certificate can be replaced, and a bundle that has FIRST and SECOND among others."""

    server: EmbeddedPostgres
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.pem"

    def give_bundle(self, *authorities: Authority) -> None:
        write(self.folder / "new.pem", "# a name\n".join(each.certificate_pem for each in authorities), 0o644).replace(
            self.bundle
        )

    def use(self, authority: Authority) -> None:
        """Let PostgreSQL show a certificate of `authority` from now on, to new connections only: all others end."""
        certify(self.folder, authority)
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")
            wait_until("the certificate is not served", lambda: self.is_verified_by(authority))
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [ROLE])

    def is_verified_by(self, authority: Authority) -> bool:
        path = write(self.folder / "one.pem", authority.certificate_pem, 0o644)
        with suppress(ssl.SSLCertVerificationError):
            return bool(self.chain(path))
        return False

    def chain(self, path: Path) -> tuple[bytes, ...]:
        given = settings(database_port=self.server.port)
        return asyncio.run(_chain(path, given))


async def _chain(path: Path, given: ProxySettings) -> tuple[bytes, ...]:
    return await verified_chain(given, Bundle.read(path, given).context, asyncio.Lock())


def write(path: Path, text: str, mode: int) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    give_to(server_user(), path)
    path.chmod(mode)
    return path


def certify(folder: Path, authority: Authority) -> dict[str, str]:
    certificate, key = authority.issue((), utc_now())
    return {
        "ssl_cert_file": str(write(folder / "server.crt", certificate, 0o600)),
        "ssl_key_file": str(write(folder / "server.key", key, 0o600)),
    }


def der(*authorities: Authority) -> set[bytes]:
    return {ssl.PEM_cert_to_DER_cert(each.certificate_pem) for each in authorities}


@pytest.fixture(scope="module")
def running_database() -> Iterator[Database]:
    program = find_postgres()
    if not program.has_tls:
        pytest.skip("the wheel's PostgreSQL has no TLS: install the system's (apt-get install postgresql)")
    with ExitStack() as stack:
        folder = stack.enter_context(TempFolder("authorities"))
        given = {"ssl": "on", **certify(folder, FIRST)}
        server = stack.enter_context(EmbeddedPostgres(CONNECTIONS, settings=given, program=program))
        add_role(server)
        yield Database(server, folder)


@pytest.fixture
def database_with_tls(running_database: Database) -> Database:
    """The module's database, with a certificate of FIRST."""
    running_database.give_bundle(*OTHERS, FIRST, SECOND)
    running_database.use(FIRST)
    return running_database


@pytest.fixture
def pool(database_with_tls: Database, make_proxy: Callable[..., Proxy]) -> Pool:
    proxy = make_proxy(
        server_tls_mode="verify-full",
        server_tls_ca_file=database_with_tls.bundle,
        database_port=database_with_tls.server.port,
        database_name=DATABASE,
        database_user=ROLE,
        database_password=ROLE_PASSWORD,
        query_wait_seconds=2,
        agent_tick_seconds=0.1,
    )
    return Pool(proxy.start_ready(), database_with_tls)


@dataclass
class Pool:
    """A whole proxy, and what its PgBouncer reads at a login."""

    proxy: Proxy
    database: Database

    @property
    def file(self) -> Path:
        return Path(self.proxy.setting("run_folder")) / "database-ca.crt"

    @property
    def is_whole(self) -> bool:
        return self.file.is_symlink() and self.file.resolve() == self.database.bundle.resolve()

    def authorities(self) -> frozenset[bytes]:
        found = Bundle.read(self.file, settings()).certificates
        assert found <= Bundle.read(self.database.bundle, settings()).certificates
        return found

    def holds(self, *authorities: Authority) -> bool:
        return not self.file.is_symlink() and self.authorities() == der(*authorities)

    def ask(self) -> bool:
        """Return what a client that just came hears: whether its server connection has TLS."""
        with psycopg.connect(self.proxy.conninfo(dbname=DATABASE), connect_timeout=10) as connection:
            row = connection.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
        return row == (True,)

    def advice(self) -> list[str]:
        words = "is not signed by an authority in"
        return [line["message"] for line in self.proxy.log_lines() if words in line["message"]]


def test_pgbouncer_reads_only_what_verifies_the_database(pool: Pool) -> None:
    """Soon after the start the file holds the one root, and logins by it are verified and served."""
    assert pool.ask()
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    pool.database.use(FIRST)
    assert pool.ask()
    assert pool.holds(FIRST)


def test_certificate_of_another_root_of_the_bundle_goes_on_at_once(pool: Pool) -> None:
    """A rotated certificate costs no query; the file follows and keeps the root before, and nobody is alarmed."""
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    pool.database.use(SECOND)
    assert pool.ask()
    wait_until("the file does not follow", lambda: pool.holds(FIRST, SECOND))
    pool.database.use(FIRST)  # an instance behind the same name that has not been rotated yet
    assert pool.ask()
    assert pool.holds(FIRST, SECOND)
    assert pool.advice() == []


def test_root_that_is_not_in_the_bundle_is_refused(pool: Pool) -> None:
    """The file is the whole bundle then, nobody is served, the log has the advice; the right one is served again."""
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    pool.database.use(STRANGER)
    with pytest.raises(psycopg.OperationalError):
        pool.ask()
    assert pool.is_whole
    wait_until("nobody is told", pool.advice)
    pool.database.use(FIRST)
    wait_until("the file is still the whole bundle", lambda: answers(pool) and pool.holds(FIRST))


def answers(pool: Pool) -> bool:
    with suppress(psycopg.OperationalError):
        return pool.ask()
    return False


def test_root_that_leaves_the_bundle_is_trusted_no_more(pool: Pool) -> None:
    """Within a tick the file has nothing that the bundle has not, and the database is refused."""
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    pool.database.give_bundle(*OTHERS, SECOND)
    wait_until("the file does not follow", lambda: pool.is_whole)
    pool.database.use(FIRST)
    with pytest.raises(psycopg.OperationalError):
        pool.ask()


def test_agent_that_starts_again_takes_the_file_over(pool: Pool) -> None:
    """Clients are served without it; a root that left the bundle meanwhile leaves the file, too."""
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    agent = pool.proxy.agent_pid()
    os.kill(agent, signal.SIGSTOP)
    pool.database.give_bundle(*OTHERS, SECOND)
    os.kill(agent, signal.SIGKILL)
    wait_until("the file does not follow", lambda: pool.is_whole)
    pool.database.give_bundle(*OTHERS, FIRST, SECOND)
    wait_until("the file is still the whole bundle", lambda: answers(pool) and pool.holds(FIRST))


def test_looking_at_the_certificate_is_no_connection_and_no_fault(database_with_tls: Database) -> None:
    """It works while every connection of the database is taken, and PostgreSQL's log has nothing to say about it."""
    database = database_with_tls
    with ExitStack() as stack:
        with suppress(psycopg.OperationalError):
            for _ in range(CONNECTIONS + 1):
                stack.enter_context(psycopg.connect(database.server.conninfo()))
        begun = database.server.log_path.stat().st_size
        (_, root) = database.chain(database.bundle)
    assert {root} == der(FIRST)
    text = database.server.log_path.read_text()[begun:]
    said = [json.loads(line)["message"] for line in text.splitlines()]
    assert [words for words in said if not words.startswith(("connection ", "disconnection"))] == []


# --- which of them, and when ---


def trusted(common_name: str, region: str = "", years: float = 10.0) -> Trusted:
    subject = (("organizationName", "Amazon Web Services, Inc."), ("localityName", region), ("commonName", common_name))
    return Trusted(f"{common_name}/{region}/{years}".encode(), subject, time.time() + years * 365 * 86400)


RDS = tuple(
    trusted(f"Amazon RDS {region} Root CA {algorithm} G1")
    for region in ("eu-west-1", "eu-west-2", "us-east-1", "us-gov-east-1")
    for algorithm in ("RSA2048", "RSA4096", "ECC384")
)


def names(kept: tuple[bytes, ...]) -> list[str]:
    return [each.decode().split("/")[0] for each in kept]


def test_regions_other_roots_are_kept() -> None:
    """All three roots of the database's region stay, whichever it has now, and none of another region."""
    kept = authorities_to_keep(RDS, (b"leaf", RDS[5].der), (), time.time())
    wanted = [f"Amazon RDS eu-west-2 Root CA {algorithm} G1" for algorithm in ("ECC384", "RSA2048", "RSA4096")]
    assert names(kept) == wanted


def test_next_generation_is_kept_but_nothing_that_has_expired() -> None:
    """G2 is likely to be the next one; a certificate that ended verifies nobody."""
    newer = trusted("Amazon RDS eu-west-1 Root CA RSA2048 G2")
    expired = trusted("Amazon RDS eu-west-1 Root CA RSA2048 G0", years=-1)
    kept = authorities_to_keep((*RDS, newer, expired), (b"leaf", RDS[0].der), (), time.time())
    assert newer.der in kept
    assert expired.der not in kept


def test_many_of_one_family_are_not_all_kept() -> None:
    """The chain's own come first, the root before all."""
    many = tuple(trusted(f"Root CA {number}") for number in range(100))
    kept = authorities_to_keep(many, (b"leaf", many[70].der, many[50].der), (many[9].der,), time.time())
    assert kept[:3] == (many[50].der, many[70].der, many[9].der)
    assert len(kept) == MOST_KEPT


@pytest.mark.parametrize(
    "chain", [(), (b"leaf", b"a root that is not in the bundle")], ids=["Python does not tell", "unknown root"]
)
def test_bundle_stays_whole_when_the_root_is_not_known(chain: tuple[bytes, ...]) -> None:
    """What cannot be told is not guessed."""
    assert authorities_to_keep(RDS, chain, (), time.time()) == ()


@pytest.mark.parametrize(
    ("given", "is_narrowed"),
    [
        ({"server_tls_mode": "verify-full"}, True),
        ({"server_tls_mode": "verify-ca"}, True),
        ({"server_tls_mode": "require"}, False),
        ({"server_tls_mode": "disable"}, False),
        ({"server_tls_mode": "verify-full", "database_host": "/run/postgresql"}, False),
    ],
)
def test_only_a_verified_database_has_a_file_of_its_own(given: dict[str, object], is_narrowed: bool) -> None:
    """Over a unix socket and in weaker modes there is nothing to verify."""
    assert narrows_authorities(settings(**given)) is is_narrowed
    assert bundle_path(settings(server_tls_ca_file="/etc/bundle.pem", **given)) == Path("/etc/bundle.pem")
