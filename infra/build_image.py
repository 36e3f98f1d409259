"""Builds the proxy's image with docker, from the same context that `cdk deploy` uses, and tries it out.

Checks its size and what is in it, and lists its parts (CycloneDX) in dist/, by the image's name and platform.

Without --platform the image is for this machine, so it can be run: the smoke test starts it as ECS would, in front
of a PostgreSQL of its own. `cdk deploy` builds for the platform that it deploys to by itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

# Node 20 works, too; jsii's banner about its age would hide our own lines. Read when aws_cdk is imported.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

if shutil.which(os.environ.get("JSII_NODE", "node")) is None:
    # Before the import, which would start it and leave a traceback of its own.
    sys.exit("emberpool: Node.js is missing, the CDK needs it; install Node.js 22 or newer")
try:
    from emberpool_app.image.container import SmokeTestFailed
    from emberpool_app.image.docker import Docker, DockerFailed
    from emberpool_app.image.inspection import ImageUnfit, inspect_image
    from emberpool_app.image.lock import LockUnreadable
    from emberpool_app.image.sbom import SbomInvalid
    from emberpool_app.image.smoke_test import smoke_test
    from emberpool_cdk import ProxyContext, SourceMissing
    from emberpool_local.errors import LocalStackError
except ModuleNotFoundError as missing:
    sys.exit(f"emberpool: the Python package {missing.name} is missing; run `make image`, which installs it")

DIST = Path(__file__).resolve().parent.parent / "dist"
EXIT_INTERRUPTED = 130  # what shells say of a command that Ctrl-C ended


def main(command_line: list[str] | None = None) -> int:
    """Build the image and try it out; return its exit code: 0, 1 with one message, 130 after Ctrl-C."""
    arguments = _arguments(command_line)
    try:
        docker = Docker.find(arguments.docker)
        with ProxyContext() as context:
            docker.build(context, arguments.tag, _build_options(arguments))
        inspect_image(docker, arguments.tag, arguments.output, _show)
        # An image for another machine runs here only if that is emulated, which we cannot know.
        if arguments.smoke_test or (arguments.smoke_test is None and arguments.platform is None):
            smoke_test(docker, arguments.tag, _show)
        elif arguments.smoke_test is None:
            _show("not tried out, as --platform was given; --smoke-test does it where this machine can run it")
    except LocalStackError as error:
        sys.exit(f"emberpool: {error.problem}. {error.next_step}")
    except (DockerFailed, ImageUnfit, LockUnreadable, SbomInvalid, SmokeTestFailed, SourceMissing) as error:
        sys.exit(f"emberpool: {error}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _arguments(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make image", description=__doc__)
    parser.add_argument("--tag", default="emberpool-proxy", help="name of the image (default: %(default)s)")
    parser.add_argument("--platform", help="for which machine, as in linux/arm64 (default: this one)")
    parser.add_argument(
        "--build-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an ARG of the Dockerfile: BASE_IMAGE or RDS_CA_BUNDLE_URL; may be repeated",
    )
    parser.add_argument("--network", help="the build's network, as docker build takes it")
    parser.add_argument(
        "--smoke-test",
        action=argparse.BooleanOptionalAction,
        help="run the image afterwards (default: when --platform is not given)",
    )
    parser.add_argument(
        "--output", type=Path, default=DIST, metavar="FOLDER", help="where the list of its parts goes (default: dist)"
    )
    parser.add_argument("--docker", default=os.environ.get("CDK_DOCKER", "docker"), help="the docker program")
    arguments = parser.parse_args(command_line)
    for each in arguments.build_arg:
        if not each.partition("=")[0] or "=" not in each:
            parser.error(f"--build-arg must be NAME=VALUE, got {each!r}")
    return arguments


def _build_options(arguments: argparse.Namespace) -> list[str]:
    options = [option for each in arguments.build_arg for option in ("--build-arg", each)]
    for name in ("platform", "network"):
        if value := getattr(arguments, name):
            options += [f"--{name}", value]
    return options


def _show(line: str) -> None:
    print(f"emberpool: {line}", flush=True)  # noqa: T201 (the command's output, in order with docker's)


if __name__ == "__main__":
    sys.exit(main())
