"""What a restarted agent must know to attach to the PgBouncers that went on without it."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.pgbouncer.scram import verifier

STATE_FILE = "agent.json"


@dataclass(frozen=True)
class AgentState:
    """The console's login, the first peer id of this task's processes (0: no peers), and who was a client."""

    agent_password: str = field(repr=False)
    agent_verifier: str = field(repr=False)
    first_peer_id: int = 0
    client_users: tuple[str, ...] = ()  # so that one who is removed later is locked, not forgotten
    control_session: int = 0  # backend process of the control connection, whose locks are this task's slots; 0: none
    own_authority: str = field(default="", repr=False)  # the CA that signed the clients' certificate, if it is our own

    @classmethod
    def new(cls) -> AgentState:
        """Return the state of an agent that starts for the first time."""
        password = secrets.token_urlsafe(32)
        return cls(password, verifier(password))

    @classmethod
    def read(cls, folder: Path) -> AgentState | None:
        """Return what an earlier agent of this task wrote, or None."""
        try:
            values = json.loads((folder / STATE_FILE).read_bytes())
            return cls(**{**values, "client_users": tuple(values["client_users"])})
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def write(self, folder: RunFolder) -> None:
        """Keep the state for the next agent, 0600. Raises RunFolderUnusable."""
        folder.write(STATE_FILE, json.dumps(asdict(self)))
