"""Requests that schemathesis makes of the endpoint's own description, right and wrong ones, signed and sent to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import schemathesis
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ..conftest import CLIENT_PASSWORD, CLIENT_USER, Proxy
from .served import start_endpoint

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = ("/Execute", "/BatchExecute", "/BeginTransaction", "/CommitTransaction", "/RollbackTransaction")
# A made-up statement is hardly ever SQL, and a made-up place never one of the database's.
STATEMENTS = (
    "select 1",
    "values (null, true, 1.5, array['a', null], '\\x00'::bytea)",
    "select now(), 'NaN'::float8",
    "",
)
ABOUT_ELSEWHERE = ("database", "schema", "transactionId")
BOUNDED = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a request is small as it is
    suppress_health_check=list(HealthCheck),
)


class Signed(requests.auth.AuthBase):
    """Signs as an SDK does."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        made = AWSRequest(request.method, request.url, data=request.body or b"")
        SigV4Auth(Credentials(CLIENT_USER, CLIENT_PASSWORD), "rds-data", "eu-west-1").add_auth(made)
        request.headers.pop("Authorization", None)
        request.headers.update(made.headers.items())
        return request


@pytest.fixture(scope="module")
def proxy(make_shared_proxy: Callable[..., Proxy]) -> Proxy:
    """A proxy whose endpoint the tests share; a transaction that is begun goes soon."""
    return start_endpoint(
        make_shared_proxy, data_tls_mode="disable", data_transaction_idle_seconds=1, data_most_transactions=1000
    )


@pytest.fixture(scope="module")
def url(proxy: Proxy) -> str:
    """Where it is."""
    return f"http://127.0.0.1:{proxy.setting('data_port')}"


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """An HTTP client that signs."""
    with requests.Session() as made:
        made.trust_env = False  # no proxy of this machine
        made.auth = Signed()
        yield made


@pytest.fixture(scope="module")
def description(url: str, session: requests.Session) -> Any:
    """What the endpoint says of itself."""
    return schemathesis.openapi.from_dict(session.get(f"{url}/openapi.json").json())


@pytest.mark.parametrize("path", PATHS)
def test_what_is_described_is_answered_as_described(
    proxy: Proxy, url: str, session: requests.Session, description: Any, path: str
) -> None:
    """A request by the description has an answer by it, and none is a failure of the endpoint's."""
    statuses = set()

    @BOUNDED
    @given(
        case=description[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE),
        sql=some.sampled_from(STATEMENTS),
        is_elsewhere=some.booleans(),
    )
    def is_answered(case: Any, sql: str, is_elsewhere: bool) -> None:
        if sql and "sql" in case.body:
            case.body["sql"] = sql
        if not is_elsewhere and "sql" in case.body:
            for member in ABOUT_ELSEWHERE:
                case.body.pop(member, None)
        answer = case.call_and_validate(base_url=url, session=session, checks=CHECKS)
        assert answer.status_code != 403, answer.text
        statuses.add(answer.status_code)

    is_answered()
    assert statuses & {200, 404}
    assert [line for line in proxy.log_lines() if line["level"] == "ERROR"] == []


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_described_is_refused(
    proxy: Proxy, url: str, session: requests.Session, description: Any, path: str
) -> None:
    """A request that breaks the description is a bad request, and never a failure of the endpoint's."""

    refused = []

    @BOUNDED
    @given(case=description[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def is_refused(case: Any) -> None:
        answer = case.call_and_validate(base_url=url, session=session, checks=CHECKS)
        if case.meta.components[ParameterLocation.BODY].mode.is_negative:  # not only how it was signed
            assert answer.status_code == 400, answer.text
            refused.append(case.body)

    is_refused()
    assert refused
    assert [line for line in proxy.log_lines() if line["level"] == "ERROR"] == []
