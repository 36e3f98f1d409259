"""One container of the proxy's image, run as its task definition in emberpool_cdk.proxy_container would run it.

Read-only root, no capability, the container's user: the image's VOLUME is the one place to write to. It shares this
machine's network, so the docker daemon has to run on this very machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emberpool_app.image.docker import BYTES_PER_MEGABYTE, Docker
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER
from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.waiting import wait_until
from emberpool_proxy.settings import PREFIX, variable

START_SECONDS = 60.0
STOP_SECONDS = 20
PROBE_TIMEOUT_SECONDS = 2.0
HTTP_OK = 200
BYTES_PER_KILOBYTE = 1024  # the kernel's kB
FIRST_PROCESS = "1"  # the supervisor; the other parts are its children
PARTS = {"agent": "agent", "data endpoint": "data-endpoint"}  # the word of the command line that starts each
COMMAND = "Command"
# A form feed between processes, which no command line has: the shell's own has it as it is written here.
LIST_PROCESSES = rf"""
for each in /proc/[0-9]*; do
    printf '\f'; cat "$each/status"; printf '{COMMAND}: '; tr '\000\n' '  ' < "$each/cmdline"
done 2> /dev/null || true  # one that ends meanwhile is no failure
"""
# The container is on this machine: an HTTP proxy that the environment names must not be asked.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SmokeTestFailed(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The image was built but does not do what it must: the message says what, with the container's last lines."""


class ImageContainer:
    """A running container: with ImageContainer(docker, image, settings, authorities, folder) as container.

    `settings` are fields of ProxySettings, `authorities` takes the place of the image's CA bundle, `folder` gets the
    container's log. It is removed when it ends, also if we are killed. The constructor starts nothing.
    """

    def __init__(
        self, docker: Docker, image: str, settings: Mapping[str, str], authorities: Path, folder: Path
    ) -> None:
        self.settings = settings
        self.name = f"emberpool-smoke-test-{secrets.token_hex(4)}"
        self._docker = docker
        self._image = image
        self._authorities = authorities
        self._log_path = folder / f"{self.name}.log"
        self._started = 0.0
        self._child: Child | None = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._child = start_child(
            self._command(),
            log_path=self._log_path,
            environment=self._environment(),
            death_signal=signal.SIGTERM,  # docker run hands it on, and --rm removes what has drained
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child.is_running:
            subprocess.run([self._docker.program, "kill", self.name], capture_output=True, check=False)
            self.child.stop(signal.SIGTERM, STOP_SECONDS)

    @property
    def child(self) -> Child:
        """The `docker run` that is attached to the container and ends with its exit code."""
        if self._child is None:
            raise RuntimeError("the container was not started")
        return self._child

    def wait_until_ready(self) -> float:
        """Return the seconds from `docker run` to the first 200 of /readyz. Raises SmokeTestFailed."""
        try:
            wait_until(
                "it did not become ready",
                lambda: not self.child.is_running or self.readiness() == HTTP_OK,
                START_SECONDS,
            )
        except TimeoutError as error:
            raise self.failed(str(error)) from error
        if not self.child.is_running:
            raise self.failed(f"it ended with exit code {self.child.process.returncode} while it started")
        return time.monotonic() - self._started

    def wait_until_ended(self) -> int:
        """Return the exit code. Raises SmokeTestFailed when it does not end."""
        try:
            return self.child.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failed(f"it did not end within {START_SECONDS:g} s") from None

    def readiness(self) -> int:
        """Return the status of /readyz; 0 when nobody answers."""
        url = f"http://{LOOPBACK}:{self.settings['health_port']}/readyz"
        try:
            with _DIRECT.open(url, timeout=PROBE_TIMEOUT_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except (urllib.error.URLError, OSError):
            return 0

    def status(self) -> dict[str, Any]:
        """Return what /status shows. Raises SmokeTestFailed."""
        url = f"http://{LOOPBACK}:{self.settings['health_port']}/status"
        try:
            with _DIRECT.open(url, timeout=PROBE_TIMEOUT_SECONDS) as answer:
                document: dict[str, Any] = json.load(answer)
        except (OSError, ValueError) as error:
            raise self.failed(f"/status does not answer: {error}") from error
        return document

    def run(self, *command: str) -> str:
        """Run a command in the container and return what it printed. Raises DockerFailed."""
        return self._docker.output("exec", self.name, *command)

    def users(self) -> set[str]:
        """Return the user ids of all its processes."""
        return {process["Uid"].split()[0] for process in self._processes()}

    def megabytes(self) -> dict[str, float]:
        """Return the resident memory of each part in Python. Raises SmokeTestFailed when one does not run."""
        processes = self._processes()
        found = {"supervisor": next(each for each in processes if each["Pid"] == FIRST_PROCESS)}
        for part, word in PARTS.items():
            process = next((each for each in processes if word in each[COMMAND].split()), None)
            if process is None:
                raise self.failed(f"it has no {part}: its processes are {sorted(each['Name'] for each in processes)}")
            found[part] = process
        return {part: _resident_megabytes(process) for part, process in found.items()}

    def stop(self) -> subprocess.Popen[bytes]:
        """Start to stop it as ECS does: SIGTERM, then SIGKILL if it takes longer than STOP_SECONDS."""
        command = [self._docker.program, "stop", "--time", str(STOP_SECONDS), self.name]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def printed(self) -> str:
        """Return what the container has printed."""
        return self._log_path.read_text(errors="replace")

    def failed(self, what: str) -> SmokeTestFailed:
        """Return an error with the container's last lines."""
        return SmokeTestFailed(f"smoke test: {what}. Its last lines:\n{self.child.last_log_lines()}")

    def _command(self) -> list[str]:
        options = ["--rm", "--name", self.name, "--network", "host", "--read-only", "--user", CONTAINER_USER]
        # Not even the capabilities that Fargate leaves to a container are needed.
        options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--volume", f"{self._authorities}:{CA_FILE}:ro"]
        options += [option for each in self.settings for option in ("--env", variable(each))]
        return [self._docker.program, "run", *options, self._image]

    def _environment(self) -> dict[str, str]:
        # Docker takes the settings' values from here, so that no command line has a secret.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return inherited | {variable(name): value for name, value in self.settings.items()}

    def _processes(self) -> list[dict[str, str]]:
        """Return the kernel's account of each process, and its command line."""
        accounts = (_by_name(account) for account in self.run("sh", "-c", LIST_PROCESSES).split("\f"))
        return [account for account in accounts if COMMAND in account]


def _by_name(account: str) -> dict[str, str]:
    lines = (line.partition(":") for line in account.splitlines())
    return {name: words.strip() for name, _, words in lines if words.strip()}


def _resident_megabytes(process: Mapping[str, str]) -> float:
    return int(process["VmRSS"].split()[0]) * BYTES_PER_KILOBYTE / BYTES_PER_MEGABYTE
