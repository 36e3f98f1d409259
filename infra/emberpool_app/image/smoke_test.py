"""Tries out the proxy's image: what only a container can show.

Its own PgBouncer, Python, compiled packages and certificate authorities, with a read-only root and without rights: it
starts, serves a query and a call of the RDS Data API, drains on SIGTERM and refuses wrong settings. What the proxy does
beyond that, tests/proxy_service shows without an image.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from emberpool_app.image.container import HTTP_OK, ImageContainer, SmokeTestFailed
from emberpool_app.image.data_endpoint import DataEndpoint
from emberpool_app.image.docker import Docker
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER
from emberpool_local.host.ports import LOOPBACK, free_port
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.program import find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.pgbouncer.config import CLIENT_CA_FILE
from emberpool_proxy.settings import ProxySettings, variable
from emberpool_proxy.tls.authority import Authority, utc_now

CONNECT_SECONDS = 10
EXIT_USAGE = 2
DATABASE, DATABASE_USER, CLIENT_USER = "smoke_test", "pool", "function"


def smoke_test(docker: Docker, image: str, show: Callable[[str], None]) -> None:
    """Run `image` in front of a PostgreSQL of its own and tell `show` what was seen.

    Raises SmokeTestFailed, DockerFailed and what EmbeddedPostgres raises.
    """
    authority = Authority.make(utc_now())
    with TempFolder("image") as folder, _database(folder, authority) as postgres:
        trial = _Trial(docker, image, folder, _settings(postgres))
        trial.write_authorities(authority)
        _check_wrong_setting_is_refused(trial)
        show("a wrong setting ends it with exit code 2 and one line that names it")
        with trial.container() as container:
            show(f"ready {container.wait_until_ready():.1f} s after docker run, its root file system read-only")
            show(f"knows its PgBouncer as Debian's {_check_package(container)}")
            authority_file = _copy_authority(container)
            _check_query(container, authority_file, server_has_tls=postgres.program.has_tls)
            show(_query_words(postgres))
            data = _data_endpoint(container, authority_file)
            data.check_calls()
            show("its data endpoint answers boto3 over TLS, and refuses a call that is signed with a wrong password")
            _check_user(container)
            show(f"runs as user {CONTAINER_USER}; {_memory_words(container)}")
            _check_drain(container, authority_file, data)
            _check_kept(postgres)
            show("transactions of both kinds that run at SIGTERM commit, then it ends with exit code 0")


@dataclass(frozen=True)
class _Trial:
    """What all containers of one smoke test have in common."""

    docker: Docker
    image: str
    folder: Path
    settings: dict[str, str]

    @property
    def authorities(self) -> Path:
        return self.folder / "authorities.pem"

    def container(self, **changed_settings: str) -> ImageContainer:
        settings = self.settings | changed_settings
        return ImageContainer(self.docker, self.image, settings, self.authorities, self.folder)

    def write_authorities(self, authority: Authority) -> None:
        """Write the image's own bundle of authorities with ours added: PgBouncer has to load all of them."""
        read_bundle = ("run", "--rm", "--network", "none", "--entrypoint", "cat", self.image, CA_FILE)
        bundle = self.docker.output(*read_bundle)
        try:
            ssl.create_default_context(cadata=bundle)
        except ssl.SSLError as error:
            # PgBouncer would skip what it cannot read, and know fewer authorities.
            raise SmokeTestFailed(f"smoke test: {CA_FILE} of the image is no list of certificates: {error}") from error
        self.authorities.write_text(bundle + authority.certificate_pem)


@contextmanager
def _database(folder: Path, authority: Authority) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL with a certificate that `authority` signed, if it was built with TLS."""
    program = find_postgres()
    settings = {}
    if program.has_tls:
        pair = authority.issue((), utc_now())
        for name, content in zip(("ssl_cert_file", "ssl_key_file"), pair, strict=True):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(content)
            give_to(server_user(), path)
            settings[name] = str(path)
        settings["ssl"] = "on"
    with EmbeddedPostgres(max_connections=20, settings=settings, program=program) as postgres:
        yield postgres


def _settings(postgres: EmbeddedPostgres) -> dict[str, str]:
    database_password, client_password = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    postgres.create_role_and_database(DATABASE_USER, database_password, DATABASE)
    return {
        "database_host": postgres.host,
        "database_port": str(postgres.port),
        "database_name": DATABASE,
        "database_user": DATABASE_USER,
        "database_password": database_password,
        "server_tls_mode": "verify-full" if postgres.program.has_tls else "disable",
        "server_tls_ca_file": CA_FILE,
        "client_user": CLIENT_USER,
        "client_password": client_password,
        "listen_host": LOOPBACK,
        "client_port": str(free_port()),
        "health_port": str(free_port()),
        "data_port": str(free_port()),
        "drain_seconds": "5",  # all that the data endpoint's transaction has
        "stop_seconds": "15",
    }


def _check_wrong_setting_is_refused(trial: _Trial) -> None:
    with trial.container(client_port="70000") as container:
        exit_code = container.wait_until_ended()
        lines = container.printed().splitlines()
        if exit_code != EXIT_USAGE or len(lines) != 1 or variable("client_port") not in lines[0]:
            raise container.failed(f"a wrong setting ended it with exit code {exit_code} and {len(lines)} lines")


def _check_user(container: ImageContainer) -> None:
    if (users := container.users()) != {CONTAINER_USER}:
        raise container.failed(f"it runs as {' and '.join(sorted(users))}, not as {CONTAINER_USER} alone")


def _check_package(container: ImageContainer) -> str:
    # By its number alone it would be taken for one that lacks what Debian has mended in it.
    told = container.status()["pgbouncer"]["package"]
    installed = container.run("dpkg-query", "--show", "--showformat", "${Version}", "pgbouncer")
    if told != installed:
        raise container.failed(f"it takes its PgBouncer for Debian's {told}, and dpkg says {installed}")
    return installed


def _memory_words(container: ImageContainer) -> str:
    parts = (f"{part} {megabytes:.0f} MB" for part, megabytes in container.megabytes().items())
    return f"in memory: {', '.join(parts)}"


def _copy_authority(container: ImageContainer) -> Path:
    """Return a file with the authority that the proxy made for itself, which its clients verify it by."""
    path = container.child.log_path.with_name(CLIENT_CA_FILE)
    path.write_text(container.run("cat", f"{ProxySettings.run_folder}/{CLIENT_CA_FILE}"))
    return path


def _data_endpoint(container: ImageContainer, authority: Path) -> DataEndpoint:
    port, password = int(container.settings["data_port"]), container.settings["client_password"]
    return DataEndpoint(port, authority, CLIENT_USER, password, container.failed)


def _connect(container: ImageContainer, authority: Path) -> psycopg.Connection:
    conninfo = make_conninfo(
        host=LOOPBACK,
        port=container.settings["client_port"],
        user=CLIENT_USER,
        password=container.settings["client_password"],
        dbname=DATABASE,
        sslmode="verify-full",
        sslrootcert=str(authority),
        connect_timeout=CONNECT_SECONDS,
    )
    try:
        return psycopg.connect(conninfo)
    except psycopg.OperationalError as error:
        raise container.failed(f"a client cannot connect: {error}") from error


def _check_query(container: ImageContainer, authority: Path, *, server_has_tls: bool) -> None:
    with _connect(container, authority) as connection:
        row = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    if row != (server_has_tls,):
        raise container.failed(f"TLS to the database was expected to be {server_has_tls}, PostgreSQL says {row}")


def _query_words(postgres: EmbeddedPostgres) -> str:
    if postgres.program.has_tls:
        return "serves a query over TLS, the certificate of each side verified"
    return "serves a query over TLS; without TLS to the database, as this PostgreSQL has none"


def _check_drain(container: ImageContainer, authority: Path, data: DataEndpoint) -> None:
    transaction = data.begin("CREATE TABLE kept_by_call AS SELECT 1")
    with _connect(container, authority) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1")  # opens a transaction
        with container.stop():
            try:
                wait_until("/readyz did not notice SIGTERM", lambda: container.readiness() != HTTP_OK)
                data.commit(transaction)
                connection.commit()
            except (TimeoutError, psycopg.OperationalError) as error:
                raise container.failed(f"it did not drain: {error}") from error
    exit_code = container.wait_until_ended()
    if exit_code != 0:
        raise container.failed(f"it ended with exit code {exit_code} after SIGTERM")


def _check_kept(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.conninfo(database=DATABASE)) as connection:
        found = connection.execute("SELECT to_regclass('kept'), to_regclass('kept_by_call')").fetchone()
    if found != ("kept", "kept_by_call"):
        raise SmokeTestFailed(f"smoke test: of kept and kept_by_call, committed in the drain, there is {found}")
