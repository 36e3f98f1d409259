"""Which authorities PgBouncer reads at each login at the database: the whole proxy, and a PostgreSQL with TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.postgres.program import find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.config import DATABASE_CA_FILE, bundle_path, narrows_authorities
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.authority import Authority, utc_now
from emberpool_proxy.tls.database_authorities import MOST_KEPT, DatabaseAuthorities
from emberpool_proxy.tls.database_chain import Bundle, verified_chain

from .bare_pgbouncer import DATABASE, ROLE, ROLE_PASSWORD, add_role
from .conftest import BOUND_SECONDS, Proxy, wait_until

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
def pool(new_pool: Pool) -> Pool:
    """A pool that is ready."""
    new_pool.proxy.start_ready()
    return new_pool


@pytest.fixture
def new_pool(database_with_tls: Database, make_proxy: Callable[..., Proxy]) -> Pool:
    """A pool that has not been started."""
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
    return Pool(proxy, database_with_tls)


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

    def messages(self) -> list[str]:
        return [line["message"] for line in self.proxy.log_lines()]

    def advice(self) -> list[str]:
        return [message for message in self.messages() if "is not signed by an authority in" in message]


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


def test_database_that_comes_back_with_another_root_is_seen_before_the_first_login(pool: Pool) -> None:
    """After an outage PgBouncer never tries with a file that does not verify the database."""
    wait_until("the file is still the whole bundle", lambda: pool.holds(FIRST))
    assert pool.ask()
    with outage(pool.database):
        assert_served_after_outage(pool, SECOND)
    wait_until("the file does not follow", lambda: pool.holds(FIRST, SECOND))
    assert [message for message in pool.messages() if "TLS handshake error" in message] == []


def test_database_that_was_away_at_the_start_is_looked_at_before_the_first_login(new_pool: Pool) -> None:
    """The clients that waited for it all come at once: PgBouncer is not to read the whole bundle for each of them."""
    with outage(new_pool.database):
        new_pool.proxy.start_ready()
        assert_served_after_outage(new_pool, FIRST)
    assert new_pool.holds(FIRST)
    wait_until("nobody said it", lambda: "the database is back" in new_pool.messages())
    messages = new_pool.messages()
    narrowed = messages.index("pgbouncer verifies the database by the authorities that it needs")
    assert narrowed < messages.index("the database is back")


@contextmanager
def outage(database: Database) -> Iterator[None]:
    """Begin with a database that is stopped, end with one that runs."""
    database.server.stop()
    try:
        yield
    finally:
        if not database.server.is_running:
            database.server.start()


def assert_served_after_outage(pool: Pool, root: Authority) -> None:
    """Have a client wait while the database is away, and start it with a certificate of `root`."""
    with ThreadPoolExecutor(1) as somebody:
        waiting = somebody.submit(answers, pool)
        wait_until("nobody saw it", lambda: "the database is away: new work waits until it is back" in pool.messages())
        certify(pool.database.folder, root)
        pool.database.server.start()
    assert waiting.result() or answers(pool)


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
    complaints = ("SSL", "startup packet", "could not", "reset", "EOF")
    assert [words for words in said if any(each in words for each in complaints)] == []


async def test_sleeping_database_is_left_alone(database_with_tls: Database) -> None:
    """While no pool has a connection nobody asks the database; as soon as one has, the file follows."""
    given = settings(
        server_tls_mode="verify-full",
        server_tls_ca_file=str(database_with_tls.bundle),
        database_port=database_with_tls.server.port,
        agent_tick_seconds=0.1,
        run_as_user=server_user() or "nobody",
        run_folder=str(database_with_tls.folder / "run"),
    )
    RunFolder.prepare(given.run_path, given.run_as_user)
    asked: list[bool] = []
    is_in_use = False

    async def tell() -> bool:
        asked.append(is_in_use)
        return is_in_use

    kept = DatabaseAuthorities(given, asyncio.Lock(), tell, lambda *_: None)
    kept.begin()
    file = given.run_path / DATABASE_CA_FILE
    begun = await log_after_all_before(database_with_tls.server)
    running = asyncio.create_task(kept.run())
    try:
        await wait_until_async(lambda: len(asked) >= 3)
        assert "connection received" not in database_with_tls.server.log_path.read_text()[begun:]
        assert file.resolve() == database_with_tls.bundle.resolve()
        is_in_use = True
        await wait_until_async(lambda: not file.is_symlink())
    finally:
        running.cancel()
    assert Bundle.read(file, given).certificates == der(FIRST)


async def log_after_all_before(server: EmbeddedPostgres) -> int:
    """Return where the log ends when the last connection of the test before is in it: after one of our own."""
    with psycopg.connect(server.conninfo()) as connection:
        received = f'"pid":{connection.info.backend_pid}'
        await wait_until_async(lambda: received in server.log_path.read_text())
    return server.log_path.stat().st_size


async def wait_until_async(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not fact():  # noqa: ASYNC110 (files have no events)
            await asyncio.sleep(0.01)


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
