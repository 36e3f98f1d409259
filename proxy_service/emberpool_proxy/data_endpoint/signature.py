"""Who signed a request: AWS Signature Version 4, with the user names and passwords of the pool's clients as key pairs.

The one interface of authentication: Verifier.caller. What the signature covers is the method, the path, the query, the
headers that it names and the whole body. Whatever is wrong is AccessDeniedException, which every SDK knows. The message
depends on the request alone as far as the name goes: it never says whether there is such a user.

Source of the steps: "Create a signed AWS API request", AWS IAM user guide.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple, NoReturn, Protocol
from urllib.parse import quote

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import ACCESS_DENIED, DataError

SERVICE = "rds-data"
ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_SECONDS = 300  # AWS's own: a request may be that old, or a client's clock that much ahead
# A user has one or two passwords, a deployment a few regions. What strangers ask for pushes others out, nothing worse.
MOST_SIGNING_KEYS = 1024

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=([^\s,]+)/([0-9]{8})/([^\s,/]+)/([^\s,/]+)/aws4_request"
    r" *, *SignedHeaders=([^\s,]+) *, *Signature=([0-9a-f]{64}) *"
)
_MOMENT = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~-]+)+")
_HOW = (
    f"sign it by AWS Signature Version 4 for the service {SERVICE}, with a client user of the pool as access key id "
    "and its password as secret access key"
)
_MISMATCH = (
    "the signature does not match: the access key id must be a client user of the pool, the secret access key its "
    "password, and the host, the signed headers and the body must arrive as they were signed"
)


class Headers(Protocol):
    """A request's headers by lower-case name, as granian has them."""

    def keys(self) -> Iterable[str]:
        """Return the names."""
        ...

    def get_all(self, name: str, /) -> Sequence[str]:
        """Return the values under a name, in the order in which they came."""
        ...


class SignedRequest(NamedTuple):
    """A request as it came: `path` and `query` are not decoded, `body` is whole."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes


class KnownCallers(Protocol):
    """Who may call."""

    def callers(self, name: str) -> Sequence[Caller]:
        """Return one caller for each password that is valid for the name now, the current one's first.

        None for a name that is unknown.
        """
        ...

    def look(self) -> bool:
        """Look for changes now, and say whether there are any."""
        ...


class _Claim(NamedTuple):
    """What the Authorization header says."""

    name: str
    day: str
    region: str
    signed_headers: str
    signature: str


class Verifier:
    """Finds out who signed a request."""

    def __init__(self, known: KnownCallers) -> None:
        self._known = known
        # An unknown name costs as much time as a known one, and its signature cannot match.
        self._nobody = (Caller("", "", secrets.token_hex(32)),)

    def caller(self, request: SignedRequest, now: float) -> Caller:
        """Return who signed the request; `now` is in seconds since the epoch.

        Raises DataError: AccessDeniedException when it is not signed, or not as it must be.
        """
        claim = _claim(request)
        moment = _moment(request.headers, claim, now)
        body_hash = hashlib.sha256(request.body).hexdigest()
        _check_declared_body(request.headers, body_hash)
        canonical = _canonical_request(request, claim.signed_headers, body_hash)
        to_sign = (
            f"{ALGORITHM}\n{moment}\n{claim.day}/{claim.region}/{SERVICE}/aws4_request\n"
            f"{hashlib.sha256(canonical.encode()).hexdigest()}"
        ).encode()
        found = self._matching(claim, to_sign)
        if found is None and self._known.look():
            found = self._matching(claim, to_sign)  # with a password that has been there for less than a second
        if found is None:
            _refuse_mismatch(request.headers)
        return found

    def _matching(self, claim: _Claim, to_sign: bytes) -> Caller | None:
        callers = self._known.callers(claim.name) or self._nobody
        for caller in callers:
            key = _signing_key(caller.password, claim.day, claim.region)
            if hmac.compare_digest(hmac.digest(key, to_sign, "sha256").hex(), claim.signature):
                return callers[0]  # PgBouncer lets a user in by the current password only
        return None


def _claim(request: SignedRequest) -> _Claim:
    given = request.headers.get_all("authorization")
    if len(given) != 1:
        _refuse_unsigned(request, len(given))
    found = _AUTHORIZATION.fullmatch(given[0])
    if found is None:
        _refuse_form(given[0])
    name, day, region, service, signed_headers, signature = found.groups()
    if service != SERVICE:
        _deny(f"the request is signed for the service {service!r:.40}: it must be {SERVICE}")
    return _Claim(name, day, region, signed_headers, signature)


def _moment(headers: Headers, claim: _Claim, now: float) -> str:
    """Return when the request was signed, in AWS's form."""
    given = headers.get_all("x-amz-date")
    if len(given) != 1 or not _MOMENT.fullmatch(given[0]):
        _deny(
            f"the request must have one header x-amz-date like 20300131T235959Z, got {', '.join(given)[:60] or 'none'}"
        )
    try:
        signed_at = datetime.fromisoformat(given[0]).timestamp()
    except ValueError:
        _deny(f"x-amz-date is no time: {given[0]}")
    if not given[0].startswith(claim.day):
        _deny(f"x-amz-date is {given[0]}, but the credential's scope is of {claim.day}: they must be of one day")
    if not abs(now - signed_at) <= SKEW_SECONDS:
        here = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        _deny(
            f"the request was signed at {given[0]} and it is {here} here, more than {SKEW_SECONDS // 60} minutes "
            "apart: set the client's clock, or sign it anew"
        )
    return given[0]


def _check_declared_body(headers: Headers, body_hash: str) -> None:
    """Compare the body with the hash that some SDKs send beside it; the signature is over the real one in any case."""
    for declared in headers.get_all("x-amz-content-sha256"):
        if declared == body_hash:
            continue
        if declared == "UNSIGNED-PAYLOAD":
            _deny("the body is not signed (UNSIGNED-PAYLOAD): leave payload signing on")
        if declared.startswith("STREAMING-"):
            _deny(f"the body is signed in chunks ({declared:.60}): sign it whole, by its SHA-256")
        _deny("the body is not the one that was signed: its SHA-256 is not that of x-amz-content-sha256")


def _canonical_request(request: SignedRequest, signed_headers: str, body_hash: str) -> str:
    headers, names = request.headers, signed_headers.split(";")
    if "host" not in names:
        _deny("the header host must be among the signed headers")
    for name in headers.keys():  # noqa: SIM118 (granian's headers)
        if name.startswith("x-amz-") and name not in names:
            _deny(f"the header {name:.60} must be among the signed headers, as all x-amz- headers")
    lines = []
    for name in names:
        values = headers.get_all(name)
        if not values:
            _deny(f"the header {name!r:.60} is signed, but did not arrive, or has other characters than ASCII's")
        value = values[0] if len(values) == 1 else ",".join(" ".join(each.split()) for each in values)
        lines.append(f"{name}:{' '.join(value.split())}\n")
    path = request.path if _PLAIN_PATH.fullmatch(request.path) else _canonical_path(request.path)
    query = _canonical_query(request.query) if request.query else ""
    return f"{request.method}\n{path}\n{query}\n{''.join(lines)}\n{signed_headers}\n{body_hash}"


def _canonical_path(path: str) -> str:
    """Return the path without dots and empty parts, encoded once more: every service but S3 has it so."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    ending = "/" if parts and path.endswith("/") else ""
    return quote(f"/{'/'.join(parts)}{ending}", safe="/~")


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(f"{name}={value}" for name, value in sorted((name, value) for name, _, value in pairs))


@lru_cache(MOST_SIGNING_KEYS)
def _signing_key(password: str, day: str, region: str) -> bytes:
    key = f"AWS4{password}".encode()
    for part in (day, region, SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _refuse_unsigned(request: SignedRequest, times: int) -> NoReturn:
    if times:
        _deny("the request has more than one Authorization header")
    if "x-amz-signature=" in request.query.lower():
        _deny("the request is signed in its query (a presigned URL): only an Authorization header is taken here")
    _deny(f"the request is not signed: {_HOW}")


def _refuse_form(authorization: str) -> NoReturn:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        _deny(f"the Authorization header is of another kind than {ALGORITHM}: {_HOW}")
    if "/aws4_request" not in rest:
        _deny(f"the credential's scope must be ACCESS_KEY_ID/YYYYMMDD/REGION/{SERVICE}/aws4_request")
    _deny(
        f"the Authorization header must be '{ALGORITHM} Credential=ACCESS_KEY_ID/YYYYMMDD/REGION/{SERVICE}/"
        "aws4_request, SignedHeaders=NAME;NAME, Signature=64 hexadecimal digits'"
    )


def _refuse_mismatch(headers: Headers) -> NoReturn:
    if headers.get_all("x-amz-security-token"):
        # The common mistake on Lambda: the role's credentials of AWS, which are in the environment.
        _deny(f"{_MISMATCH}. A session token came with it: AWS's own credentials are not known here")
    _deny(_MISMATCH)


def _deny(message: str) -> NoReturn:
    raise DataError(ACCESS_DENIED, message)
