"""Starts our moto server in a process of its own and stops it; nothing outlives the `with`."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emberpool_local.errors import DeployUnavailable
from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.waiting import wait_until

REGION = "us-east-1"
ACCOUNT = "123456789012"  # moto's
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
START_SECONDS = 60.0


@dataclass(frozen=True)
class Gap:
    """Something that the simulation left out: `kind` is dropped, skipped or unknown."""

    kind: str
    type: str
    detail: str


@dataclass(frozen=True)
class MotoServer:
    """A running server, and how clients reach it."""

    port: int
    gaps_file: Path
    host: str = "localhost"  # moto takes 127.0.0.1 for part of a template's address

    @property
    def url(self) -> str:
        """The endpoint of every service."""
        return f"http://{self.host}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the AWS variables for a child process; the user's own credentials and profile never reach it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))}
        return {
            **inherited,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str) -> Any:
        """Return a boto3 client of the server, the same one at each call."""
        return _client(self.url, service)

    def gaps(self) -> list[Gap]:
        """Return what the simulation left out so far."""
        return [Gap(**json.loads(line)) for line in self.gaps_file.read_text().splitlines()]


@functools.cache
def _client(url: str, service: str) -> Any:
    import boto3  # noqa: PLC0415 (a quarter of a second, needed by this command only)
    from botocore.config import Config  # noqa: PLC0415

    session = boto3.session.Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    # Buckets in the path: a bucket's own host name would leave this machine.
    config = Config(s3={"addressing_style": "path"})
    return session.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]


@contextmanager
def running_moto(folder: Path, host: str = LOOPBACK) -> Iterator[MotoServer]:
    """Run the server on a free port of `host`; its files are in `folder`, `moto.log` among them.

    Raises DeployUnavailable when moto is not installed or does not start.
    """
    for module in ("moto", "flask"):
        if importlib.util.find_spec(module) is None:
            raise DeployUnavailable(
                f"The Python package {module} is missing: it stands in for AWS here",
                "Install our development dependencies: tools/prepare dev",
            )
    port_file, gaps_file = folder / "moto.port", folder / "moto.gaps"
    files: list[str | Path] = ["--port-file", port_file, "--gaps-file", gaps_file]
    child = start_child(
        [sys.executable, "-m", "emberpool_local.aws.moto_server", "--host", host, *files],
        log_path=folder / "moto.log",
        environment=_server_environment(),
        working_folder=folder,
    )
    try:
        _wait_for(port_file, child)
        known_as = {} if host == LOOPBACK else {"host": host}
        yield MotoServer(int(port_file.read_text()), gaps_file, **known_as)
    finally:
        child.stop()


def _server_environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**inherited, **CREDENTIALS, "AWS_DEFAULT_REGION": REGION, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}


def _wait_for(port_file: Path, child: Child) -> None:
    try:
        wait_until("moto did not start", lambda: port_file.exists() or not child.is_running, START_SECONDS)
    except TimeoutError as slow:
        raise DeployUnavailable(str(slow), "Run the command again; this machine may be busy") from None
    if not port_file.exists():
        raise DeployUnavailable(
            f"moto ended while it started. Its last lines:\n{child.last_log_lines()}",
            "Install our development dependencies again: tools/prepare dev",
        )
