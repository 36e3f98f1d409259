"""The database of all contenders: a PostgreSQL with TLS, signed by an authority of its own, and the pools' role."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.proxy.pgbench import pgbench_path
from benchmarks.proxy.processes import cpu_seconds_of

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.postgres.program import find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess
from emberpool_proxy.tls.authority import Authority, utc_now

SHARED_BUFFERS = "512MB"


@dataclass(frozen=True)
class SecuredDatabase:
    """The running database: how the pools log in, what they verify it by, and a certificate for a proxy here."""

    postgres: EmbeddedPostgres
    access: DatabaseAccess = field(repr=False)
    authority_path: Path
    authority: Authority = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return the variables that libpq's programs connect with as the pools' role."""
        return {
            "PGHOST": self.access.host,
            "PGPORT": str(self.access.port),
            "PGUSER": self.access.user,
            "PGPASSWORD": self.access.password,
            "PGDATABASE": self.access.name,
            "PGSSLMODE": "require",
        }

    def cpu_seconds(self) -> float:
        """Return the processor time of the server and its backends."""
        return cpu_seconds_of(int((self.postgres.data_folder / "postmaster.pid").read_text().split("\n", 1)[0]))

    def fill(self, scale: int) -> None:
        """Make pgbench's tables."""
        command = [pgbench_path(self.postgres.program), "--initialize", "--init-steps=dtGp", f"--scale={scale}"]
        ran = subprocess.run(command, env=self.environment(), check=False, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"pgbench --initialize: {ran.stderr.strip()[-500:]}")


@contextmanager
def running_secured_database(max_connections: int) -> Iterator[SecuredDatabase]:
    """Run it. Raises RuntimeError when the PostgreSQL at hand has no TLS."""
    program = find_postgres()
    if not program.has_tls:
        raise RuntimeError(f"{program.origin} has no TLS, which all contenders use: install the system's PostgreSQL")
    authority = Authority.make(utc_now())
    certificate, key = authority.issue((), utc_now())
    with TempFolder("tls") as folder:
        settings = {
            "ssl": "on",
            "ssl_cert_file": str(write_for_servers(folder / "server.crt", certificate)),
            "ssl_key_file": str(write_for_servers(folder / "server.key", key)),
            "shared_buffers": SHARED_BUFFERS,
            # Half of the contenders would be measured while it cleans up after the others.
            "autovacuum": "off",
            "checkpoint_timeout": "1h",
            "max_wal_size": "8GB",
            "log_connections": "off",  # thousands at once
        }
        authority_path = write_for_servers(folder / "ca.crt", authority.certificate_pem, 0o644)
        with EmbeddedPostgres(max_connections=max_connections, settings=settings, program=program) as postgres:
            access = DatabaseAccess(postgres.host, postgres.port, "bench", "pool", "password-of-the-pool")
            postgres.create_role_and_database(access.user, access.password, access.name)
            yield SecuredDatabase(postgres, access, authority_path, authority)


def write_for_servers(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file that belongs to the user of the servers."""
    path.touch(mode=0o600)
    path.write_text(text)
    give_to(server_user(), path)
    path.chmod(mode)
    return path
