"""Builds the proxy's image with docker, from the same context that `cdk deploy` uses."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

try:
    from emberpool_cdk import ProxyContext, SourceMissing
except ModuleNotFoundError as missing:
    sys.exit(f"emberpool: the Python package {missing.name} is missing; run `make synth`, which installs it")


def main() -> int:
    """Build the image; return docker's exit code, or 1 with one message when docker cannot be used."""
    parser = argparse.ArgumentParser(prog="make image", description=__doc__)
    parser.add_argument("--tag", default="emberpool-proxy", help="name of the image (default: %(default)s)")
    parser.add_argument("--platform", default="linux/arm64", help="for which machine (default: %(default)s)")
    parser.add_argument("--docker", default=os.environ.get("CDK_DOCKER", "docker"), help="the docker program")
    arguments = parser.parse_args()
    docker = shutil.which(arguments.docker)
    if docker is None:
        sys.exit(f"emberpool: {arguments.docker} is not installed; install docker, or name another with --docker")
    if subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        sys.exit(f"emberpool: {docker} finds no docker daemon; start it, then run `make image` again")
    try:
        with ProxyContext() as context:
            command = [docker, "build", "--platform", arguments.platform, "--tag", arguments.tag, str(context)]
            return subprocess.run(command, check=False).returncode
    except SourceMissing as error:
        sys.exit(f"emberpool: {error}")


if __name__ == "__main__":
    sys.exit(main())
