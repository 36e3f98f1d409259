"""Builds the Lambda layer's zips for every architecture and Python, with the builder that `cdk deploy` uses."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

try:
    from emberpool_cdk import LayerBuildFailed, SourceMissing
    from emberpool_cdk.layer_build import MACHINES, RUNTIMES, LayerBuild
    from layer_zip import write_zip
except ModuleNotFoundError as missing:
    sys.exit(f"emberpool: the Python package {missing.name} is missing; run `make layer`, which installs it")

HEADINGS = ("file", "python", "architecture", "zipped MB", "pyc", "sha256")
BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Artifact:
    """A zip that was written; `sha256` in hex."""

    build: LayerBuild
    archive: Path
    sha256: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row below HEADINGS."""
        compiler = self.build.compiler
        return (
            self.archive.name,
            self.build.python_version,
            self.build.architecture,
            f"{self.archive.stat().st_size / BYTES_PER_MB:.2f}",
            "no" if compiler is None else f"yes ({compiler.version})",
            self.sha256,
        )


def build_layers(builds: Sequence[LayerBuild], output: Path) -> list[Artifact]:
    """Build the zips, as many at once as this machine has cores. Raises LayerBuildFailed, SourceMissing, OSError."""
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(_build, build, output) for build in builds]
        try:
            return [each.result() for each in running]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _build(build: LayerBuild, output: Path) -> Artifact:
    variant = "-powertools" if build.with_powertools else ""
    archive = output / f"emberpool-layer{variant}-{build.runtime}-{build.architecture}.zip"
    with tempfile.TemporaryDirectory(prefix="embercdk-layer-") as folder:
        build.write(folder)
        return Artifact(build, archive, write_zip(Path(folder), archive))


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make layer", description=__doc__)
    parser.add_argument("--with-powertools", action="store_true", help="add Powertools for AWS Lambda")
    parser.add_argument("--architecture", choices=tuple(MACHINES), help="only this one (default: all)")
    parser.add_argument("--runtime", choices=RUNTIMES, help="only this one (default: all)")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Build what was asked for and print a table; return 1 with one message when a zip cannot be built."""
    arguments = _arguments()
    architectures = [arguments.architecture] if arguments.architecture else list(MACHINES)
    runtimes = [arguments.runtime] if arguments.runtime else list(RUNTIMES)
    builds = [
        LayerBuild(architecture, runtime, arguments.with_powertools)
        for runtime in runtimes
        for architecture in architectures
    ]
    try:
        artifacts = build_layers(builds, arguments.output)
    except (LayerBuildFailed, SourceMissing) as error:
        sys.exit(f"emberpool: {error}")
    except OSError as error:
        sys.exit(f"emberpool: the zips cannot be written to {arguments.output}: {error.strerror}")
    print(_table([HEADINGS, *(artifact.cells for artifact in artifacts)]))  # noqa: T201 (a command's output)
    for warning in dict.fromkeys(build.warning for build in builds if build.warning):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
