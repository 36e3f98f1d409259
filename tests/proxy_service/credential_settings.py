"""Settings for the tests of credentials; nothing of them is started."""

from __future__ import annotations

from typing import Any

from emberpool_proxy.settings import ProxySettings

CLIENT_PASSWORD = "client-password-of-43-characters-or-more-0123456789"
ROLE, ROLE_PASSWORD = "pool_user", "hush-role-password"


def settings(**given: Any) -> ProxySettings:
    """A proxy for the database `orders` with one client user, both from the environment unless `given` says else."""
    return ProxySettings(
        **{
            "database_host": "127.0.0.1",
            "database_name": "orders",
            "database_user": ROLE,
            "database_password": "" if _has_other_source(given) else ROLE_PASSWORD,
            "client_user": "" if given.get("client_secret_arn") else "function",
            "client_password": "" if given.get("client_secret_arn") else CLIENT_PASSWORD,
            "server_tls_mode": "disable",
            **given,
        }
    )


def _has_other_source(given: dict[str, Any]) -> bool:
    names = ("database_secret_arn", "database_password_file")
    return any(given.get(name) for name in names) or given.get("database_auth") == "iam"
