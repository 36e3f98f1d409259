"""What is in an image, read from its files: for any platform, as nothing of it is run.

Which Debian packages and Python distributions it has, and what must not be there.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from emberpool_app.image.docker import Docker

DPKG_STATUS = "var/lib/dpkg/status"
OS_RELEASE = "usr/lib/os-release"
PROXY_FOLDER = "opt/emberpool/"
BUILD_TOOLS = frozenset(
    ("apt", "apt-get", "cc", "gcc", "g++", "clang", "make", "perl", "pip", "pip3", "uv", "git", "curl", "wget", "psql")
)
SECRETS = re.compile(
    r"(^|/)(\.env(\..*)?|\.git|\.netrc|\.npmrc|\.pypirc|\.aws|\.ssh|id_(rsa|ecdsa|ed25519)|.*\.key)(/|$)"
)
TESTS = re.compile(rf"^{PROXY_FOLDER}app/(.*/)?(tests?|test_[^/]*\.py|conftest\.py)(/|$)")
DIST_INFO = re.compile(r"/site-packages/([^/]+)-([^/-]+)\.dist-info/METADATA$")


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """One installed package, and the source package that Debian's security notices name."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str
    homepage: str | None = None


@dataclass(frozen=True, slots=True)
class ImageContents:
    """The files of an image that tell what is in it. `distributions` are Python's, by their normalized names."""

    names: tuple[str, ...]
    packages: tuple[DebianPackage, ...]
    distributions: Mapping[str, str]
    os_release: Mapping[str, str]

    @classmethod
    def of(cls, docker: Docker, image: str) -> ImageContents:
        """Read an image of the docker daemon. Raises DockerFailed."""
        with _exported(docker, image, docker.image_platform(image)) as files:
            names, texts, distributions = [], {}, {}
            for member in files:
                names.append(member.name)
                if member.name in (DPKG_STATUS, OS_RELEASE) and (file := files.extractfile(member)):
                    texts[member.name] = file.read().decode()
                if found := DIST_INFO.search(member.name):
                    distributions[normalized(found[1])] = found[2]
        packages = tuple(installed_packages(texts.get(DPKG_STATUS, "")))
        return cls(tuple(names), packages, distributions, os_release(texts.get(OS_RELEASE, "")))

    def package(self, name: str) -> DebianPackage | None:
        """Return the installed package of that name."""
        return next((package for package in self.packages if package.name == name), None)

    def out_of_place(self) -> list[str]:
        """Return the files that no image of the proxy should have: build tools, secrets, tests."""
        return [
            name
            for name in self.names
            if (PurePosixPath(name).name in BUILD_TOOLS and "bin" in PurePosixPath(name).parts)
            or SECRETS.search(name)
            or TESTS.search(name)
        ]


def installed_packages(status: str) -> Iterator[DebianPackage]:
    """Yield the packages of dpkg's status file that are installed: what was removed may still be named there."""
    for paragraph in re.split(r"\n\s*\n", status):
        fields: dict[str, str] = dict(re.findall(r"(?m)^([A-Za-z-]+): *(.*)$", paragraph))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        source, _, in_brackets = fields.get("Source", fields["Package"]).partition(" ")
        yield DebianPackage(
            fields["Package"],
            fields["Version"],
            fields["Architecture"],
            source,
            in_brackets.strip("()") or fields["Version"],
            fields.get("Homepage"),
        )


def os_release(text: str) -> dict[str, str]:
    """Return the variables of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip('"') for name, _, value in pairs}


def normalized(name: str) -> str:
    """Return a Python distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@contextmanager
def _exported(docker: Docker, image: str, platform: str) -> Iterator[tarfile.TarFile]:
    container = docker.output("create", "--platform", platform, image).strip()  # created, never started
    try:
        with docker.stream("export", container) as stream, tarfile.open(fileobj=stream, mode="r|") as files:
            yield files
    finally:
        docker.output("rm", "--force", "--volumes", container)
