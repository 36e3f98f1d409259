"""What `make image` calls an image's data endpoint with, held against the endpoint itself: no image is built here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emberpool_app.image.container import SmokeTestFailed
from emberpool_app.image.data_endpoint import DataEndpoint
from emberpool_proxy.tls.authority import Authority, utc_now

from ..conftest import CLIENT_PASSWORD, CLIENT_USER, Proxy
from .served import authority, client, rows, start_endpoint


@pytest.fixture(scope="module")
def proxy(make_shared_proxy: Callable[..., Proxy]) -> Proxy:
    """A proxy whose endpoint all tests of this module share."""
    return start_endpoint(make_shared_proxy)


def endpoint(proxy: Proxy, password: str = CLIENT_PASSWORD, certificate: Path | None = None) -> DataEndpoint:
    port = int(proxy.setting("data_port"))
    return DataEndpoint(port, certificate or authority(proxy), CLIENT_USER, password, SmokeTestFailed)


def test_endpoint_that_works_passes(proxy: Proxy) -> None:
    """The calls are such that the endpoint answers them, and what was begun is there once it is committed."""
    calls = endpoint(proxy)
    calls.check_calls()
    transaction = calls.begin("CREATE TABLE kept_by_call AS SELECT 1 AS number")
    found = "SELECT count(*) FROM pg_class WHERE relname = 'kept_by_call'"
    assert rows(client(proxy), found) == [[0]]
    calls.commit(transaction)
    assert rows(client(proxy), found) == [[1]]


def test_refused_call_is_told_without_the_password(proxy: Proxy) -> None:
    """An endpoint that does not know its caller fails the smoke test, and its own words say why."""
    with pytest.raises(SmokeTestFailed, match="does not answer: .*AccessDeniedException") as failed:
        endpoint(proxy, "another-password").check_calls()
    assert "another-password" not in str(failed.value)


def test_certificate_of_another_authority_is_told(proxy: Proxy, tmp_path: Path) -> None:
    """The certificate is verified: an endpoint that shows another one fails the smoke test."""
    other = tmp_path / "other.pem"
    other.write_text(Authority.make(utc_now()).certificate_pem)
    with pytest.raises(SmokeTestFailed, match="does not answer: SSL validation failed"):
        endpoint(proxy, certificate=other).check_calls()
