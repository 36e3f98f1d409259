"""The generations of the private CA: who signs when, what clients trust meanwhile, and the secret that holds them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.errors import CertificateUnusable
from emberpool_proxy.tls.authority import Authority
from emberpool_proxy.tls.generations import (
    TRUST_SPREADS,
    Generations,
    from_secret,
    renewed,
    signing,
    to_secret,
    trusted,
)
from emberpool_proxy.tls.pem import CertificateFiles, read_files

from .test_tls_certificates import ARN, DAY, NAME, NOW, verify


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(NOW - DAY)


steps = st.lists(st.integers(min_value=0, max_value=200), min_size=1, max_size=60)


@settings(max_examples=25)
@given(steps)
def test_client_that_read_the_ca_in_time_always_verifies(days: list[int]) -> None:
    """Over decades of any steps: who read the CAs TRUST_SPREADS ago accepts what is issued now, all its life."""
    generations: Generations = ()
    now = NOW
    seen: list[tuple[datetime, str]] = []
    for step in days:
        now += step * DAY
        generations = renewed(generations, now) or generations
        files = read_files(*signing(generations, now).issue((NAME,), now), trusted(generations, now), now, "it")
        verify(files, NAME, files.expires_at - timedelta(seconds=1))
        assert len(generations) <= 2
        seen.append((now, files.ca_pem))
        # The last that was read at least TRUST_SPREADS ago, or the first of all if it still is the only one.
        old = [ca for at, ca in seen if at <= now - TRUST_SPREADS and now - at <= 200 * DAY]
        if old:
            verify(CertificateFiles(files.certificate_pem, "", old[-1], files.expires_at), NAME, now)


def test_next_generation_is_trusted_before_it_signs() -> None:
    """A year before the CA's end there is a second one: trusted at once, signing a month later, alone at the end."""
    (first,) = renewed((), NOW) or ()
    late = first.not_after - 300 * DAY
    both = renewed((first,), late) or ()
    assert len(both) == 2
    assert renewed(both, late + DAY) is None
    assert trusted(both, late).count("BEGIN CERTIFICATE") == 2
    assert signing(both, late) == first
    assert signing(both, late + TRUST_SPREADS) == both[1]
    assert trusted(both, first.not_after) == both[1].certificate_pem


def test_expired_ca_is_replaced() -> None:
    """A fleet that was off for longer than its CA lives makes a new one, which signs at once."""
    (first,) = renewed((), NOW) or ()
    after = renewed((first,), first.not_after + DAY) or ()
    assert len(after) == 1
    assert signing(after, first.not_after + DAY) == after[0] != first


def test_generations_survive_their_secret(authority: Authority) -> None:
    """What is written into the secret is what is read, the oldest first."""
    newer = Authority.make(NOW)
    assert from_secret(to_secret((newer, authority)), "it") == (authority, newer)


@pytest.mark.parametrize("text", ["", " \n", "{}", '{"placeholder": "aB3"}'])
def test_empty_secret_and_the_cdks_placeholder_have_no_ca(text: str) -> None:
    """These are what a secret has before its first use."""
    assert from_secret(text, "it") == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hush", "no JSON"),
        ('["hush"]', "no object"),
        ('{"username": "hush", "password": "hush"}', "2 other members"),
        ('{"authorities": []}', "1 other members"),
        ('{"authorities": ["hush"]}', "authority 1 without"),
        ('{"authorities": [{"certificate": "hush", "private_key": "hush"}]}', "must begin with a certificate"),
    ],
)
def test_ca_secret_of_another_shape_is_one_clear_error(text: str, found: str) -> None:
    """Nothing of it is overwritten or shown: it may be somebody else's secret."""
    with pytest.raises(CertificateUnusable, match=found) as caught:
        from_secret(text, f"the secret {ARN}")
    assert ARN in str(caught.value)
    assert "hush" not in str(caught.value)


def test_pair_that_is_no_ca_is_refused(authority: Authority) -> None:
    """A server's certificate and a pair that does not match are no CA."""
    certificate, key = authority.issue((NAME,), NOW)
    with pytest.raises(CertificateUnusable, match="no certificate authority"):
        Authority.of(certificate, key, "it")
    with pytest.raises(CertificateUnusable, match="another certificate"):
        Authority.of(authority.certificate_pem, key, "it")
