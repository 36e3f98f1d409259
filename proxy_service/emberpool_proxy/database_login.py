"""Logs in to the database itself, not through PgBouncer: one way for all of the agent's own connections."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import psycopg

from emberpool_proxy.pgbouncer.config import bundle_path
from emberpool_proxy.settings import ProxySettings

Connection = TypeVar("Connection", bound=psycopg.AsyncConnection[Any])


async def log_in(
    kind: type[Connection],
    settings: ProxySettings,
    login: tuple[str, str],
    *,
    application_name: str,
    database: str | None = None,
    **options: Any,
) -> Connection:
    """Return a connection of `kind` in autocommit, as (user, password), verified as PgBouncer's own are.

    `database` is the settings' unless given, `options` are libpq's. Waits for as long as libpq does: give it a
    deadline. Raises psycopg.Error.
    """
    verifies = settings.server_tls_mode.startswith("verify-")
    user, password = login
    return await kind.connect(
        host=settings.database_host,
        port=settings.database_port,
        dbname=database or settings.database_name,
        user=user,
        password=password,
        autocommit=True,
        prepare_threshold=None,
        application_name=application_name,
        gssencmode="disable",
        sslmode=settings.server_tls_mode,
        # With a CA at hand libpq would verify in the mode `require`, too; PgBouncer does not.
        sslrootcert=str(bundle_path(settings)) if verifies else "",
        # As PgBouncer, none; libpq would look in the home folder, and give up where it may not look.
        sslcert=f"{os.devnull}/none",
        **options,
    )
