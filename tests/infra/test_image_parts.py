"""The list of the image's parts (CycloneDX), and what `make image` finds in an image without running it.

The lock and the schema are the real ones; the images are made of the files that are looked at.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from packageurl import PackageURL

import build_image
from emberpool_app.image.contents import ImageContents, installed_packages
from emberpool_app.image.inspection import ImageUnfit, inspect_image
from emberpool_app.image.lock import LockUnreadable, locked_packages
from emberpool_app.image.sbom import DescribedImage, SbomInvalid, bill_of_materials, check_valid
from emberpool_cdk.source_files import lock_file

from .docker_stand_in import DIGEST, DPKG_STATUS, SITE, StandIn, good_files

IMAGE = DescribedImage("ours:1", DIGEST, "linux/arm64", datetime(2026, 11, 22, tzinfo=UTC), "debian-13", "0.1.0")


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """A docker program whose image has the files of a test."""
    return StandIn(tmp_path)


def _bill() -> dict[str, Any]:
    python = locked_packages(lock_file("proxy").read_text())
    bill: dict[str, Any] = json.loads(bill_of_materials(IMAGE, installed_packages(DPKG_STATUS), python))
    return bill


def _inspect(stand_in: StandIn, files: dict[str, str] | None = None) -> tuple[Path, list[str]]:
    said: list[str] = []
    return inspect_image(stand_in.make(files=files), "ours:1", stand_in.folder / "dist", said.append), said


def test_bill_names_every_python_package_of_the_lock_with_its_hashes() -> None:
    """Each package that the lock has for Linux is there by purl, version and the hashes that may be installed."""
    lock = lock_file("proxy").read_text()
    parts = {part["name"]: part for part in _bill()["components"] if part["purl"].startswith("pkg:pypi/")}
    pins = {line.split("==")[0]: line for line in lock.splitlines() if "==" in line}
    assert set(parts) - {"emberpool"} == {name for name, line in pins.items() if "win32" not in line}
    for name in set(parts) - {"emberpool"}:
        assert f"{name}=={parts[name]['version']} " in pins[name]
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{parts[name]['version']}"
        hashes = {each["content"] for each in parts[name]["hashes"]}
        assert hashes
        assert all(f"--hash=sha256:{each}" in lock for each in hashes)
    assert sum(len(part.get("hashes", ())) for part in parts.values()) == lock.count("--hash") - _windows(lock)


def _windows(lock: str) -> int:
    return sum(part.count("--hash") for part in lock.replace("\\\n", " ").splitlines() if "win32" in part)


def test_bill_names_debian_packages_as_scanners_look_for_them() -> None:
    """Purls have release and architecture, and the source where Debian's notices name another; no removed package."""
    purls = [
        PackageURL.from_string(part["purl"]) for part in _bill()["components"] if part["purl"].startswith("pkg:deb/")
    ]
    assert {(purl.name, purl.version) for purl in purls} == {("bash", "5.2.37-2+b10"), ("pgbouncer", "1.26.1-1")}
    by_name = {purl.name: purl.qualifiers for purl in purls}
    assert by_name["pgbouncer"] == {"arch": "amd64", "distro": "debian-13"}
    assert by_name["bash"] == {"arch": "amd64", "distro": "debian-13", "upstream": "bash@5.2.37-2"}


def test_bill_says_which_image_it_is_of() -> None:
    """The image is the subject, by its digest, and depends on every part; no part is listed twice."""
    bill = _bill()
    subject = bill["metadata"]["component"]
    assert (subject["type"], subject["hashes"]) == ("container", [{"alg": "SHA-256", "content": "ab" * 32}])
    assert bill["metadata"]["timestamp"].startswith("2026-11-22")
    references = Counter(part["bom-ref"] for part in bill["components"])
    assert set(references.values()) == {1}
    (of_the_image,) = [each for each in bill["dependencies"] if each["ref"] == subject["bom-ref"]]
    assert set(of_the_image["dependsOn"]) == set(references)


def test_same_image_has_the_same_bill() -> None:
    """Nothing of the moment or of chance is in it; another image has another serial number."""
    assert _bill() == _bill()
    other = dataclasses.replace(IMAGE, digest="sha256:" + "cd" * 32)
    assert json.loads(bill_of_materials(other, (), ()))["serialNumber"] != _bill()["serialNumber"]


def test_bill_is_held_against_the_schema() -> None:
    """A bill that CycloneDX's schema does not allow is an error that says where."""
    bill = _bill()
    check_valid(json.dumps(bill))
    bill["components"][0]["type"] = "parcel"
    with pytest.raises(SbomInvalid, match="parcel"):
        check_valid(json.dumps(bill))
    with pytest.raises(SbomInvalid, match="no hash"):
        bill_of_materials(dataclasses.replace(IMAGE, digest="sha256:no hash"), (), ())


def test_lock_without_a_pin_or_hashes_is_refused() -> None:
    """What pip would not install with --require-hashes is in no bill."""
    for line in ("aiohttp>=3 --hash=sha256:00", "aiohttp==3.14.5"):
        with pytest.raises(LockUnreadable, match="make lock"):
            locked_packages(line)


def test_make_image_writes_the_bill_beside_what_it_built(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For another platform, too: nothing of the image is run, and what was made to read it is removed."""
    docker, dist = stand_in.make(), tmp_path / "dist"
    options = ["--docker", docker.program, "--platform", "linux/riscv64", "--tag", "registry/ours:1"]
    assert build_image.main([*options, "--output", str(dist)]) == 0
    path = dist / "registry-ours-1-linux-riscv64.cdx.json"
    check_valid(path.read_text())
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert "its PgBouncer 1.26.1-1 has every fix" in printed
    assert stand_in.calls("create") == ["create --platform linux/riscv64 registry/ours:1"]
    assert stand_in.calls("rm") == ["rm --force --volumes a-container"]
    assert not stand_in.calls("run")


def test_outdated_pgbouncer_in_the_image_is_told(stand_in: StandIn) -> None:
    """Whoever builds learns what the alarm would tell once it is deployed."""
    files = {"var/lib/dpkg/status": DPKG_STATUS.replace("1.26.1-1", "1.24.1-1+deb13u2")}
    _, said = _inspect(stand_in, files)
    (warning,) = [line for line in said if line.startswith("WARNING")]
    assert "1.24.1-1+deb13u2" in warning
    assert "CVE-2026-107350" in warning
    assert "CVE-2026-6664" not in warning


@pytest.mark.parametrize(
    "stray",
    [
        "usr/bin/gcc",
        "usr/bin/apt-get",
        "opt/emberpool/bin/pip",
        "usr/bin/curl",
        "opt/emberpool/app/.env",
        "run/emberpool/server.key",
        "root/.ssh/id_ed25519",
        "opt/emberpool/app/emberpool_proxy/agent/test_loop.py",
        "opt/emberpool/app/emberpool_proxy/tests/data.txt",
    ],
)
def test_what_does_not_belong_into_the_image_fails_it(stand_in: StandIn, stray: str) -> None:
    """A build tool, a secret or a test in the last stage ends `make image` with its path; no bill is written."""
    with pytest.raises(ImageUnfit, match=f"1 files that do not belong there: {stray}"):
        _inspect(stand_in, {stray: ""})
    assert not (stand_in.folder / "dist").exists()


def test_image_as_it_should_be_has_nothing_out_of_place(stand_in: StandIn) -> None:
    """Python's own test packages and the names of certificates are no findings."""
    harmless = ("usr/lib/python3.13/test_support.py", "etc/ssl/certs/ca.pem", "usr/share/doc/gcc/copyright")
    contents = ImageContents.of(stand_in.make(files=dict.fromkeys(harmless, "")), "ours:1")
    assert set(contents.names) == {*good_files(), *harmless}
    assert contents.out_of_place() == []


def test_image_with_other_python_packages_than_the_lock_is_unfit(stand_in: StandIn) -> None:
    """A bill from the lock must be true of the image: a package more or another version is an error."""
    with pytest.raises(ImageUnfit, match=r"not those of the lock, see requests 2\.0"):
        _inspect(stand_in, {f"{SITE}/requests-2.0.dist-info/METADATA": ""})


def test_image_without_pgbouncers_package_is_unfit(stand_in: StandIn) -> None:
    """A PgBouncer that came otherwise would be in no bill and under no watch."""
    with pytest.raises(ImageUnfit, match="no Debian package of PgBouncer"):
        _inspect(stand_in, {"var/lib/dpkg/status": DPKG_STATUS.replace("Package: pgbouncer", "Package: other")})
