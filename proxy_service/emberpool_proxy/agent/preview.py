"""What `python -m emberpool_proxy config` prints: the files as they would be rendered, without any secret."""

from __future__ import annotations

from pathlib import Path

from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.pgbouncer.config import EngineIdentity, RunningTerms, render
from emberpool_proxy.settings import ProxySettings

MASKED = "…"


def preview(settings: ProxySettings) -> list[tuple[Path, str]]:
    """Return path and text of each file of the first PgBouncer process; no secret is read for it.

    Users whose names stand in a secret only are shown by the name of the setting. What a running PgBouncer reads is
    shown with the server connections that it has without asking anybody.
    """
    role = settings.database_user or "(username in database_secret_arn)"
    client = settings.client_user or "(username in client_secret_arn)"
    snapshot = Snapshot(
        {role: MASKED}, (ClientUser(client, MASKED, settings.database_name, role),), {settings.database_name: role}
    )
    running = RunningTerms(limits={settings.database_name: settings.floor // settings.pgbouncer_processes})
    rendered = render(settings, snapshot, EngineIdentity(0, 0, MASKED), terms=running)
    return [(settings.engine_path(0) / name, text) for name, text in rendered.files.items()]
