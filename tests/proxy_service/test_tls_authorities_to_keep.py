"""Which authorities of a bundle are worth keeping once one of them has verified the database: pure, no server."""

from __future__ import annotations

import time

import pytest

from emberpool_proxy.tls.database_authorities import MOST_KEPT, authorities_to_keep
from emberpool_proxy.tls.database_chain import Trusted


def trusted(common_name: str, region: str = "", years: float = 10.0) -> Trusted:
    subject = (("organizationName", "Amazon Web Services, Inc."), ("localityName", region), ("commonName", common_name))
    return Trusted(f"{common_name}/{region}/{years}".encode(), subject, time.time() + years * 365 * 86400)


RDS = tuple(
    trusted(f"Amazon RDS {region} Root CA {algorithm} G1")
    for region in ("eu-west-1", "eu-west-2", "us-east-1", "us-gov-east-1")
    for algorithm in ("RSA2048", "RSA4096", "ECC384")
)


def names(kept: tuple[bytes, ...]) -> list[str]:
    return [each.decode().split("/")[0] for each in kept]


def test_regions_other_roots_are_kept() -> None:
    """All three roots of the database's region stay, whichever it has now, and none of another region."""
    kept = authorities_to_keep(RDS, (b"leaf", RDS[5].der), (), time.time())
    wanted = [f"Amazon RDS eu-west-2 Root CA {algorithm} G1" for algorithm in ("ECC384", "RSA2048", "RSA4096")]
    assert names(kept) == wanted


def test_next_generation_is_kept_but_nothing_that_has_expired() -> None:
    """G2 is likely to be the next one; a certificate that ended verifies nobody."""
    newer = trusted("Amazon RDS eu-west-1 Root CA RSA2048 G2")
    expired = trusted("Amazon RDS eu-west-1 Root CA RSA2048 G0", years=-1)
    kept = authorities_to_keep((*RDS, newer, expired), (b"leaf", RDS[0].der), (), time.time())
    assert newer.der in kept
    assert expired.der not in kept


def test_many_of_one_family_are_not_all_kept() -> None:
    """The chain's own come first, the root before all."""
    many = tuple(trusted(f"Root CA {number}") for number in range(100))
    kept = authorities_to_keep(many, (b"leaf", many[70].der, many[50].der), (many[9].der,), time.time())
    assert kept[:3] == (many[50].der, many[70].der, many[9].der)
    assert len(kept) == MOST_KEPT


@pytest.mark.parametrize(
    "chain", [(), (b"leaf", b"a root that is not in the bundle")], ids=["Python does not tell", "unknown root"]
)
def test_bundle_stays_whole_when_the_root_is_not_known(chain: tuple[bytes, ...]) -> None:
    """What cannot be told is not guessed."""
    assert authorities_to_keep(RDS, chain, (), time.time()) == ()
