"""Which generation of the private CA signs, which ones are trusted, and when the next is made. Pure.

The next generation is made NEXT_BEFORE the last one ends and is trusted at once; it signs only TRUST_SPREADS later,
when every client has read it. So all tasks come to the same answer from the same secret and the same time.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from emberpool_proxy.errors import CertificateUnusable
from emberpool_proxy.tls.authority import LEAF_VALID_FOR, Authority

NEXT_BEFORE = timedelta(days=365)
# A function reads the new CA when it next fails to verify, or at its next cold start: hours. A month is for those
# who copied the CA to elsewhere by hand.
TRUST_SPREADS = timedelta(days=30)
assert TRUST_SPREADS + LEAF_VALID_FOR < NEXT_BEFORE  # noqa: S101 (of constants: no leaf is cut short by its CA's end)

Generations = tuple[Authority, ...]  # the oldest first
MEMBER = "authorities"
PLACEHOLDER = "placeholder"  # what the CDK generates: a secret cannot be made without a value
EMPTY_VALUE = f'{{"{PLACEHOLDER}": "anything new"}}'


def trusted(generations: Generations, now: datetime) -> str:
    """Return the certificates (PEM) that clients verify by: every generation that has not ended."""
    return "".join(each.certificate_pem for each in generations if each.not_after > now)


def signing(generations: Generations, now: datetime) -> Authority:
    """Return the generation that signs: the newest that is known everywhere, else the oldest that is left."""
    valid = [each for each in generations if each.not_after > now]
    known = [each for each in valid if each.not_before + TRUST_SPREADS <= now]
    return known[-1] if known else valid[0]


def renewed(generations: Generations, now: datetime) -> Generations | None:
    """Return the generations with a new one beside them, or None while there is one that lasts."""
    valid = tuple(each for each in generations if each.not_after > now)
    if valid and valid[-1].not_after - now > NEXT_BEFORE:
        return None
    return (*valid, Authority.make(now))


def to_secret(generations: Generations) -> str:
    """Return the text of the secret that the tasks share."""
    pairs = [{"certificate": each.certificate_pem, "private_key": each.key_pem} for each in generations]
    return json.dumps({MEMBER: pairs})


def from_secret(text: str, origin: str) -> Generations:
    """Return the generations in the secret's text, none when it is empty or the CDK's placeholder.

    Raises CertificateUnusable when it holds anything else, without showing any of it.
    """
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        raise _other_shape(origin, "no JSON") from None
    if not isinstance(value, dict):
        raise _other_shape(origin, "JSON that is no object")
    if set(value) <= {PLACEHOLDER}:
        return ()
    pairs = value.get(MEMBER)
    if not isinstance(pairs, list) or not pairs:
        raise _other_shape(origin, f"JSON with {len(value)} other members")
    found = [_generation(pair, origin, number) for number, pair in enumerate(pairs, start=1)]
    return tuple(sorted(found, key=lambda each: each.not_before))


def _generation(pair: Any, origin: str, number: int) -> Authority:
    certificate, key = (pair.get(name) if isinstance(pair, dict) else None for name in ("certificate", "private_key"))
    if not isinstance(certificate, str) or not isinstance(key, str):
        raise _other_shape(origin, f"an authority {number} without certificate and private_key")
    return Authority.of(certificate, key, f"authority {number} of {origin}")


def _other_shape(origin: str, found: str) -> CertificateUnusable:
    return CertificateUnusable(
        f"{origin} must be empty or hold the CA that emberpool made in it, got {found}; if nothing else uses it, "
        f"write {EMPTY_VALUE} into it to have a new CA made"
    )
