"""Runs one PgBouncer process. Restarting it is the supervisor's, speaking to it the agent's."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path

from emberpool_proxy.errors import PgbouncerUnusable
from emberpool_proxy.log import PgbouncerLog
from emberpool_proxy.pgbouncer.config import INI_FILE
from emberpool_proxy.pgbouncer.log_lines import LINE
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings

OLDEST_VERSION = (1, 24)  # SHUTDOWN WAIT_FOR_SERVERS, prepared statements and the security fixes we rely on
KEPT_LOG_LINES = 20


async def find_program(settings: ProxySettings) -> Path:
    """Return the path of a PgBouncer that is new enough.

    Raises PgbouncerUnusable when it is missing, cannot be run or is older than OLDEST_VERSION.
    """
    found = shutil.which(settings.pgbouncer_path)
    if not found:
        raise PgbouncerUnusable(
            f"PgBouncer was not found at {settings.pgbouncer_path!r}; install it or set EMBERPOOL_PROXY_PGBOUNCER_PATH"
        )
    process = await asyncio.create_subprocess_exec(
        found, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace")
    match = re.search(r"PgBouncer (\d+)\.(\d+)", output)
    if not match:
        raise PgbouncerUnusable(f"{found} --version did not name a version: {output.strip()[:200]!r}")
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_VERSION:
        raise PgbouncerUnusable(
            f"PgBouncer {match[1]}.{match[2]} at {found} is too old; {OLDEST_VERSION[0]}.{OLDEST_VERSION[1]} "
            "or newer is needed"
        )
    return Path(found)


class PgbouncerProcess:
    """One PgBouncer child. It ends with us: it is started with a parent-death signal."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: PgbouncerLog, on_event: Callable[[str], object]
    ) -> None:
        self._process = process
        self._log = log
        self._on_event = on_event
        self._last_lines: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self._relay = asyncio.create_task(self._relay_log(), name="pgbouncer-log")

    @classmethod
    async def start(
        cls, program: Path, folder: RunFolder, log: PgbouncerLog, on_event: Callable[[str], object]
    ) -> PgbouncerProcess:
        """Start PgBouncer on the rendered files of `folder`; it may not answer yet.

        Each line that it logs goes to `log`, and those that tell an event to `on_event`.
        """
        # SIGINT lets running transactions end, should we be killed.
        command = ["setpriv", "--pdeathsig", "INT"]
        if folder.owner:
            command += [f"--reuid={folder.owner.pw_uid}", f"--regid={folder.owner.pw_gid}", "--clear-groups"]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--",
            str(program),
            str(folder.path / INI_FILE),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            env={"LC_ALL": "C"},  # none of our secrets
        )
        return cls(process, log, on_event)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the process has ended and its log was relayed; return its exit code."""
        code = await self._process.wait()
        await self._relay
        return code

    def kill(self) -> None:
        """End the process at once; what runs in it is lost."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    def resume(self) -> None:
        """End a pause of the whole process."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGUSR2)

    def terminate(self) -> None:
        """Let the process end once its clients have left; it takes no new ones."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def last_words(self) -> str:
        """Return the cause of its end as far as its log names it."""
        # The cause and its consequence are its FATAL and ERROR lines; the rest is start-up chatter.
        lines = [match for line in self._last_lines if (match := LINE.match(line))]
        causes = [match["message"] for match in lines if match["level"] in ("FATAL", "ERROR")]
        return f"its last words: {'; '.join(causes[-3:]) or 'none'}"

    async def _relay_log(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 (it was started with a pipe)
        while raw := await self._process.stderr.readline():
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            if self._log.relay(line):
                self._on_event(line)
        self._log.flush()
