"""The image's bill of materials as CycloneDX JSON: every Debian package of the last stage, every locked Python package.

Two makings of the same image give the same file: its time is the image's, and its serial number comes from the image.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from emberpool_app.image.contents import DebianPackage
from emberpool_app.image.lock import LockedPackage

SCHEMA = SchemaVersion.V1_6  # what scanners read; newer ones have nothing that we would say
SERIAL_NUMBERS = uuid.UUID("5b0c7d0e-6f0c-4d6b-9a44-0d2c6a2f9b1e")  # a name space of our own
ONE_OF = "emberpool:hashes"


class SbomInvalid(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """What was made is not valid against CycloneDX's schema: the message says where. A defect of ours."""


@dataclass(frozen=True, slots=True)
class DescribedImage:
    """What the bill says of the image itself. `digest` is docker's id of it, `created` when it was built."""

    name: str
    digest: str
    platform: str
    created: datetime
    distribution: str  # as in debian-13
    emberpool_version: str


def bill_of_materials(image: DescribedImage, debian: Iterable[DebianPackage], python: Iterable[LockedPackage]) -> str:
    """Return the bill as JSON. Raises SbomInvalid."""
    parts = [
        _proxy(image),
        *(_debian_component(package, image.distribution) for package in debian),
        *(_python_component(package) for package in python),
    ]
    bom = Bom(serial_number=uuid.uuid5(SERIAL_NUMBERS, f"{image.digest} {image.name}"))
    bom.metadata.timestamp = image.created
    bom.metadata.component = _container(image)
    bom.components.update(parts)
    bom.register_dependency(bom.metadata.component, parts)
    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    check_valid(text)
    return text + "\n"


def check_valid(text: str) -> None:
    """Hold a bill against CycloneDX's own schema. Raises SbomInvalid."""
    if wrong := JsonStrictValidator(SCHEMA).validate_str(text):
        first = next(iter(wrong)) if isinstance(wrong, Iterable) else wrong
        raise SbomInvalid(
            f"the list of the image's parts is no CycloneDX {SCHEMA.to_version()}: {str(first.data)[:500]}"
        )


def write_bill(text: str, folder: Path, image: DescribedImage) -> Path:
    """Write the bill into `folder`, by the image's name and platform, and return where it is."""
    name = f"{image.name}-{image.platform}".replace("/", "-").replace(":", "-")
    path = folder / f"{name}.cdx.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _container(image: DescribedImage) -> Component:
    algorithm, _, digest = image.digest.rpartition(":")
    return Component(
        type=ComponentType.CONTAINER,
        name=image.name,
        version=image.emberpool_version,
        bom_ref=f"image:{digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if algorithm == "sha256" else (),
        properties=[Property(name="emberpool:platform", value=image.platform)],
    )


def _proxy(image: DescribedImage) -> Component:
    purl = PackageURL("pypi", None, "emberpool", image.emberpool_version)
    return Component(
        type=ComponentType.APPLICATION,
        name="emberpool",
        version=image.emberpool_version,
        purl=purl,
        bom_ref=purl.to_string(),
        properties=[Property(name="emberpool:part", value="emberpool_proxy")],
    )


def _debian_component(package: DebianPackage, distribution: str) -> Component:
    qualifiers = {"arch": package.architecture, "distro": distribution}
    if (package.source, package.source_version) != (package.name, package.version):
        # Debian's security notices name the source: scanners look for it here.
        qualifiers["upstream"] = f"{package.source}@{package.source_version}"
    purl = PackageURL("deb", "debian", package.name, package.version, qualifiers)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        external_references=_homepage(package.homepage),
    )


def _homepage(address: str | None) -> list[ExternalReference]:
    return [ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(address))] if address else []


def _python_component(package: LockedPackage) -> Component:
    purl = PackageURL("pypi", None, package.name, package.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.sha256],
        properties=[Property(name=ONE_OF, value="of every file of this version; the lock allows these and no other")],
    )
