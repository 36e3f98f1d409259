"""The docker command: builds the proxy's image and answers questions about it.

Any program that understands docker's command line will do, as with the CDK (CDK_DOCKER).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BYTES_PER_MEGABYTE = 1_000_000
READ_BYTES = 65_536


class DockerFailed(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """Docker is missing, has no daemon, or failed: the message says which."""


@dataclass(frozen=True)
class Docker:
    """A docker program with a daemon behind it; make one with find()."""

    program: str

    @classmethod
    def find(cls, name: str) -> Docker:
        """Return the docker program `name`. Raises DockerFailed when it is missing or reaches no daemon."""
        program = shutil.which(name)
        if program is None:
            raise DockerFailed(f"{name} is not installed; install docker, or name another with --docker")
        if subprocess.run([program, "info"], capture_output=True, check=False).returncode != 0:
            raise DockerFailed(f"{program} finds no docker daemon; start it, then run `make image` again")
        return cls(program)

    def build(self, context: Path, tag: str, options: Sequence[str]) -> None:
        """Build an image, docker's own output shown. Raises DockerFailed."""
        built = subprocess.run([self.program, "build", *options, "--tag", tag, str(context)], check=False)
        if built.returncode != 0:
            raise DockerFailed(f"docker build failed with exit code {built.returncode}; its output says where")

    def output(self, *arguments: str) -> str:
        """Run a docker command and return what it printed. Raises DockerFailed with docker's own words."""
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DockerFailed(f"docker {arguments[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def image_megabytes(self, image: str) -> float:
        """Return the size of an image, its base included. Raises DockerFailed."""
        return int(self.output("image", "inspect", "--format", "{{.Size}}", image)) / BYTES_PER_MEGABYTE

    def image_platform(self, image: str) -> str:
        """Return what an image was built for, as in `linux/arm64`. Raises DockerFailed."""
        return self.output("image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", image).strip()

    def image_id(self, image: str) -> str:
        """Return the digest that docker knows an image by, as in `sha256:…`. Raises DockerFailed."""
        return self.output("image", "inspect", "--format", "{{.Id}}", image).strip()

    def image_created(self, image: str) -> str:
        """Return when an image was built, as ISO 8601. Raises DockerFailed."""
        return self.output("image", "inspect", "--format", "{{.Created}}", image).strip()

    @contextmanager
    def stream(self, *arguments: str) -> Iterator[IO[bytes]]:
        """Run a docker command whose output is read while it runs. Raises DockerFailed when it fails."""
        with subprocess.Popen([self.program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout is not None  # noqa: S101 (it was started with pipes)
            assert running.stderr is not None  # noqa: S101 (the same)
            yield running.stdout
            while running.stdout.read(READ_BYTES):
                pass  # what follows the archive's end
            complaint = running.stderr.read().decode(errors="replace").strip()
        if running.returncode != 0:
            raise DockerFailed(f"docker {arguments[0]} failed: {complaint[-500:]}")
