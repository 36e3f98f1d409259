"""Requests signed by botocore itself, in the form in which the endpoint gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import Credentials

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.signature import SignedRequest, Verifier

NOW = datetime(2030, 6, 15, 12, 0, 0, tzinfo=UTC)
URL = "https://pool.example:8443/Execute"
BODY = b'{"sql": "select 1"}'
NAME, PASSWORD = "app", "password-of-the-app"


class ReceivedHeaders:
    """Headers as granian has them: several under one name are kept, names are lower case."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        self.items = [(name.lower(), value) for name, value in items]

    def keys(self) -> list[str]:
        return [name for name, _ in self.items]

    def get_all(self, name: str, /) -> list[str]:
        return [value for found, value in self.items if found == name]


class Known:
    """Who may call; `appears` are callers who are found at another look only."""

    def __init__(self, *callers: Caller, appears: Sequence[Caller] = ()) -> None:
        self.known = list(callers)
        self.appears = list(appears)
        self.looks = 0

    def callers(self, name: str) -> list[Caller]:
        return [caller for caller in self.known if caller.name == name]

    def look(self) -> bool:
        self.looks += 1
        self.known += self.appears
        return bool(self.appears)


APP = Caller(NAME, "main", PASSWORD)


def received(request: AWSRequest) -> SignedRequest:
    """Return what arrives when botocore sends the request."""
    prepared = request.prepare()
    address = urlsplit(prepared.url)
    items = [(name, text(value)) for name, value in request.headers.items()]
    if "host" not in {name.lower() for name, _ in items}:
        items.append(("Host", botocore.auth._host_from_url(prepared.url)))
    return SignedRequest(
        prepared.method, address.path, address.query, ReceivedHeaders(items), text(prepared.body or b"").encode()
    )


def text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def signed(
    method: str = "POST",
    url: str = URL,
    body: bytes = BODY,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    credentials: Credentials | None = None,
    service: str = "rds-data",
    region: str = "eu-west-1",
    signer: type[SigV4Auth] = SigV4Auth,
    context: Mapping[str, Any] | None = None,
    at: datetime = NOW,
) -> SignedRequest:
    """Return a request that botocore's own signer has signed at the given time."""
    request = AWSRequest(method, url, data=body)
    for name, value in dict(headers).items() if isinstance(headers, Mapping) else headers:
        request.headers[name] = value
    request.context.update(context or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: at.replace(tzinfo=None))
        signer(credentials or Credentials(NAME, PASSWORD), service, region).add_auth(request)
    return received(request)


def changed(request: SignedRequest, **headers: str | None) -> SignedRequest:
    """Return the request with other headers (underscores are hyphens); None takes one away."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    items = [(name, value) for name, value in request.headers.items if name not in names]  # type: ignore[attr-defined]
    items += [(name, value) for name, value in names.items() if value is not None]
    return request._replace(headers=ReceivedHeaders(items))


def added(request: SignedRequest, name: str, value: str) -> SignedRequest:
    """Return the request with one header more."""
    return request._replace(headers=ReceivedHeaders([*request.headers.items, (name, value)]))  # type: ignore[attr-defined]


def verified(request: SignedRequest, *callers: Caller, seconds_later: float = 0) -> Caller:
    """Return who signed it."""
    return Verifier(Known(*(callers or (APP,)))).caller(request, NOW.timestamp() + seconds_later)


def refusal(request: SignedRequest, *callers: Caller, seconds_later: float = 0) -> str:
    """Return why it is refused, as boto3's AccessDeniedException."""
    with pytest.raises(DataError) as caught:
        verified(request, *callers, seconds_later=seconds_later)
    assert (caught.value.kind, caught.value.status) == ("AccessDeniedException", 403)
    assert PASSWORD not in caught.value.message
    return caught.value.message


def response(status: int, error: str, body: bytes) -> AWSResponse:
    """Return an answer for a `before-send` hook of boto3's."""

    class Raw:
        def stream(self, *_: object, **__: object) -> list[bytes]:
            return [body]

    return AWSResponse(URL, status, {"x-amzn-errortype": error} if error else {}, Raw())
