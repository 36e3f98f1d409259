"""The log of a build: every command with its output, kept when the build fails."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

LAST_LINES = 6
LONGEST_COMMAND_SECONDS = 600.0


class BuildFailed(Exception):  # noqa: N818 (names what happened; the finder turns it into an error for users)
    """A command of the build failed; the message names it and shows its last lines."""


class BuildLog:
    """Runs a build's commands one after the other and writes down what they print."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def run(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Run `command` in `folder`. Raises BuildFailed when it fails or takes too long."""
        self._append(f"$ {shlex.join(command)}\n")
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=LONGEST_COMMAND_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._append(f"{error}\n")
            raise BuildFailed(f"`{shlex.join(command)}`: {error}") from error
        self._append(done.stdout)
        if done.returncode != 0:
            last = "\n".join(done.stdout.strip().splitlines()[-LAST_LINES:])
            raise BuildFailed(f"`{shlex.join(command)}` ended with exit code {done.returncode}:\n{last}")

    def _append(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)
