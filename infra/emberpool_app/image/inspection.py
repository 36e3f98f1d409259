"""Looks at a built image without running it: its size, what must not be in it, PgBouncer's fixes, its list of parts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from emberpool_app.image.contents import ImageContents
from emberpool_app.image.docker import Docker
from emberpool_app.image.lock import LockedPackage, locked_packages
from emberpool_app.image.sbom import DescribedImage, bill_of_materials, write_bill
from emberpool_cdk.source_files import lock_file
from emberpool_proxy.pgbouncer.known_fixes import NEWEST, missing_fixes, parse_version

MOST_IMAGE_MEGABYTES = 200  # each new task pulls it before it serves
NAMED = 5  # of the files in a message


class ImageUnfit(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """The image was built but is not what it must be: the message says what, with figures and the next step."""


def inspect_image(docker: Docker, image: str, folder: Path, show: Callable[[str], None]) -> Path:
    """Check `image`, write its list of parts into `folder`, tell `show` what was seen; return where the list is.

    Raises ImageUnfit, SbomInvalid, LockUnreadable, SourceMissing, DockerFailed.
    """
    platform, megabytes = docker.image_platform(image), docker.image_megabytes(image)
    show(f"{image} is built for {platform}: {megabytes:.0f} MB of at most {MOST_IMAGE_MEGABYTES}")
    if megabytes > MOST_IMAGE_MEGABYTES:
        raise ImageUnfit(
            f"the image has {megabytes:.0f} MB, more than {MOST_IMAGE_MEGABYTES}; `docker history {image}` shows which "
            "step adds them"
        )
    contents = ImageContents.of(docker, image)
    python = locked_packages(lock_file("proxy").read_text())
    _check_contents(contents, python)
    show(_pgbouncer_words(contents))
    described = DescribedImage(
        image,
        docker.image_id(image),
        platform,
        datetime.fromisoformat(docker.image_created(image)),
        f"{contents.os_release.get('ID', 'debian')}-{contents.os_release.get('VERSION_ID', 'unknown')}",
        version("emberpool"),
    )
    path = write_bill(bill_of_materials(described, contents.packages, python), folder, described)
    show(f"its parts, {len(contents.packages)} Debian and {len(python)} Python packages, are listed in {path}")
    return path


def _check_contents(contents: ImageContents, python: list[LockedPackage]) -> None:
    if found := contents.out_of_place():
        raise ImageUnfit(
            f"the image has {len(found)} files that do not belong there: {', '.join(found[:NAMED])}; "
            "see which step of the Dockerfile brings them"
        )
    locked = {package.name: package.version for package in python}
    if different := sorted(set(locked.items()) ^ set(contents.distributions.items())):
        names = ", ".join(f"{name} {number}" for name, number in different[:NAMED])
        raise ImageUnfit(
            f"the image's Python packages are not those of the lock, see {names}; build it without a cache"
        )


def _pgbouncer_words(contents: ImageContents) -> str:
    package = contents.package("pgbouncer")
    number = parse_version(package.version) if package else None
    if package is None or number is None:
        raise ImageUnfit("the image has no Debian package of PgBouncer; see the Dockerfile's first stage")
    if missing := missing_fixes(number, package.version):
        cves = ", ".join(fix.cve for fix in missing)
        return f"WARNING: its PgBouncer {package.version} lacks the fixes of {cves}; {NEWEST} has them"
    return f"its PgBouncer {package.version} has every fix that this release of emberpool knows"
