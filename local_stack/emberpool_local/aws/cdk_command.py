"""Runs the project's pinned `cdk` command against a moto server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.aws.moto_process import ACCOUNT, REGION, MotoServer
from emberpool_local.errors import DeployUnavailable
from emberpool_local.host.children import start_child

CDK = Path("node_modules") / "aws-cdk" / "bin" / "cdk"
OLDEST_NODE = 20
LINES_SHOWN = 25
COMMAND_SECONDS = 600.0
# Answers what cdk asks of docker when it publishes an image: nothing is built, moto's registry stores no layers.
DOCKER_STAND_IN = """#!/bin/sh
[ "$1" = inspect ] && exit 1
[ "$1" = login ] && cat >/dev/null
exit 0
"""
# What a template does not depend on the account for; without it the first synthesis asks AWS.
QUIET = ("--ci", "--no-color", "--no-notices")


@dataclass(frozen=True)
class CdkCommand:
    """The `cdk` of a checkout; `folder` gets its output and logs. Raises DeployUnavailable when it cannot run."""

    checkout: Path
    server: MotoServer
    folder: Path

    def __post_init__(self) -> None:
        check_programs(self.checkout)
        docker = self.folder / "docker"
        docker.write_text(DOCKER_STAND_IN)
        docker.chmod(0o755)
        (self.folder / "empty").mkdir(exist_ok=True)

    @property
    def assembly(self) -> Path:
        """The folder that the app was synthesized into."""
        return self.folder / "cdk.out"

    @property
    def outputs_file(self) -> Path:
        """JSON of every stack's outputs, written by the deployment."""
        return self.folder / "outputs.json"

    def synthesize(self, context: Sequence[str] = ()) -> str:
        """Run `cdk synth` into `assembly`; later commands deploy exactly that. Returns its output."""
        values = [part for each in context for part in ("--context", each)]
        return self._run("synth", "--quiet", "--output", str(self.assembly), *values, folder=self.checkout)

    def bootstrap(self) -> str:
        """Run `cdk bootstrap`, in an empty folder: there it does not synthesize the app first."""
        return self._run("bootstrap", f"aws://{ACCOUNT}/{REGION}", folder=self.folder / "empty")

    def deploy(self) -> str:
        """Deploy all stacks, without change sets: moto applies them all the same."""
        return self._run(
            "deploy",
            "--all",
            "--method=direct",
            "--require-approval=never",
            f"--outputs-file={self.outputs_file}",
            "--app",
            str(self.assembly),
        )

    def diff(self) -> str:
        """Compare the deployed templates with the synthesized ones. Raises DeployUnavailable when they differ."""
        return self._run("diff", "--all", "--method=template", "--fail", "--app", str(self.assembly))

    def destroy(self) -> str:
        """Delete all stacks of the app."""
        return self._run("destroy", "--all", "--force", "--app", str(self.assembly))

    def _run(self, name: str, *arguments: str, folder: Path | None = None) -> str:
        log = self.folder / f"cdk-{name}.log"
        log.unlink(missing_ok=True)  # of the last time: what is returned is this command's
        child = start_child(
            ["node", self.checkout / CDK, name, *arguments, *QUIET],
            log_path=log,
            environment=self._environment(),
            working_folder=folder or self.folder,
        )
        try:
            code = child.process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise DeployUnavailable(
                f"cdk {name} did not end within {COMMAND_SECONDS:.0f} s. Its last lines:\n"
                f"{child.last_log_lines(LINES_SHOWN)}",
                "Run the command again; this machine may be busy",
            ) from None
        finally:
            if child.is_running:
                child.kill()
        if code != 0:
            raise DeployUnavailable(
                f"cdk {name} failed with exit code {code}. Its last lines:\n{child.last_log_lines(LINES_SHOWN)}",
                "Mend what it names; `make synth` shows errors of the app alone",
            )
        return log.read_text(errors="replace")

    def _environment(self) -> dict[str, str]:
        return {
            **self.server.environment(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "CDK_DISABLE_CLI_TELEMETRY": "1",
            "CDK_DISABLE_VERSION_CHECK": "1",
            "CDK_DOCKER": str(self.folder / "docker"),
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
        }


def check_programs(checkout: Path) -> None:
    """Raise DeployUnavailable unless there are Node.js, the pinned cdk command and our app."""
    if not (checkout / "cdk.json").is_file():
        raise DeployUnavailable(f"There is no cdk.json in {checkout}", "Run this in a clone of emberpool")
    node = shutil.which("node")
    if node is None:
        raise DeployUnavailable("Node.js is missing: the cdk command needs it", "Install Node.js 22 or newer")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.removeprefix("v").split(".")[0]
    if not major.isdigit() or int(major) < OLDEST_NODE:
        raise DeployUnavailable(
            f"Node.js {version or 'of an unknown version'} is too old for the cdk command",
            "Install Node.js 22 or newer",
        )
    if not (checkout / CDK).is_file():
        raise DeployUnavailable(
            f"The cdk command is not installed in {checkout / 'node_modules'}", "Install it: npm ci"
        )
