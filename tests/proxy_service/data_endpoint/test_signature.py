"""Who signed a request: everything that arrives here was signed by botocore, never by our own code."""

from __future__ import annotations

import json
import string
import time
from datetime import timedelta
from typing import Any

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proxy_service.data_endpoint.signed import (
    APP,
    BODY,
    NAME,
    NOW,
    PASSWORD,
    Known,
    ReceivedHeaders,
    added,
    changed,
    refusal,
    response,
    signed,
    verified,
)

from emberpool_proxy.data_endpoint import signature
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.signature import SignedRequest, Verifier

MISMATCH = "the signature does not match"
OPERATIONS = {
    "execute_statement": {"sql": "select :a", "parameters": [{"name": "a", "value": {"stringValue": "é\u2028😀"}}]},
    "batch_execute_statement": {"sql": "select 1", "parameterSets": [[]]},
    "begin_transaction": {"database": "main"},
    "commit_transaction": {"transactionId": "t"},
    "rollback_transaction": {"transactionId": "t"},
}
ARNS = dict.fromkeys(("resourceArn", "secretArn"), "arn:aws:rds:eu-west-1:123456789012:cluster:c")


def answered(verifier: Verifier, callers: list[Caller]) -> Any:
    """Return boto3's rds-data client whose requests go to the verifier in place of the network."""
    client: Any = boto3.Session(NAME, PASSWORD, region_name="eu-west-1").client(
        "rds-data", endpoint_url="https://pool.example:8443"
    )

    def send(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        items = [
            (name, value.decode() if isinstance(value, bytes) else value) for name, value in request.headers.items()
        ]
        items.append(("Host", "pool.example:8443"))
        body = request.body.encode() if isinstance(request.body, str) else request.body
        path = request.url.removeprefix("https://pool.example:8443")
        try:
            callers.append(verifier.caller(SignedRequest("POST", path, "", ReceivedHeaders(items), body), time.time()))
        except DataError as error:
            return response(error.status, error.kind, json.dumps({"message": error.message}).encode())
        return response(200, "", b"{}")

    client.meta.events.register("before-send.rds-data", send)
    return client


def test_every_operation_of_boto3_is_verified() -> None:
    """Each of the five calls of the unmodified client is signed by whom the endpoint says it is."""
    callers: list[Caller] = []
    client = answered(Verifier(Known(APP)), callers)
    for operation, members in OPERATIONS.items():
        getattr(client, operation)(**ARNS, **members)
    assert callers == [APP] * len(OPERATIONS)


def test_refusal_is_a_typed_error_of_boto3() -> None:
    """boto3 raises the model's own exception, once, with what to do."""
    client = answered(Verifier(Known()), [])
    with pytest.raises(client.exceptions.AccessDeniedException, match=MISMATCH) as caught:
        client.begin_transaction(**ARNS)
    assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 0


def test_either_password_of_a_rotation_is_taken() -> None:
    """Whichever signed, the caller has the first one, the current: PgBouncer lets its user in by no other."""
    new, old = Caller(NAME, "main", PASSWORD, is_read_only=True), Caller(NAME, "main", "old")
    assert verified(signed(), new, old) is new
    assert verified(signed(credentials=Credentials(NAME, "old")), new, old) is new


def test_new_password_is_looked_for_before_it_is_refused() -> None:
    """A request that is signed with a password of this moment is not refused for the second until the next look."""
    known = Known(Caller(NAME, "main", "old"), appears=[APP])
    verifier = Verifier(known)
    assert verifier.caller(signed(credentials=Credentials(NAME, "old")), NOW.timestamp()).password == "old"
    assert known.looks == 0
    assert verifier.caller(signed(), NOW.timestamp()).name == NAME
    assert known.looks == 1


def test_unknown_name_and_wrong_password_read_alike() -> None:
    """Nobody finds out which users there are."""
    wrong_password = refusal(signed(credentials=Credentials(NAME, "guess")))
    assert wrong_password == refusal(signed(credentials=Credentials("nobody", PASSWORD)))
    assert wrong_password.startswith(MISMATCH)


def test_unknown_name_costs_what_a_known_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the time: as many signatures are made for a name that does not exist."""
    made: list[str] = []
    original = signature._signing_key
    monkeypatch.setattr(signature, "_signing_key", lambda *parts: made.append(parts[1]) or original(*parts))
    refusal(signed(credentials=Credentials(NAME, "guess")))
    refusal(signed(credentials=Credentials("nobody", "guess")))
    assert made == ["20300615"] * 2


def test_empty_name_is_no_caller() -> None:
    """What stands in for unknown names cannot be signed with."""
    assert refusal(signed(credentials=Credentials("x", "")), APP).startswith(MISMATCH)


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request._replace(body=BODY + b" "),
        lambda request: request._replace(body=b""),
        lambda request: request._replace(method="PUT"),
        lambda request: request._replace(path="/BatchExecute"),
        lambda request: request._replace(query="a=1"),
        lambda request: changed(request, host="other.example"),
        lambda request: changed(request, content_type="text/plain"),
        lambda request: changed(request, x_amz_date="20300615T120001Z"),
        lambda request: added(request, "content-type", "application/json"),
        lambda request: added(request, "host", "pool.example:8443"),
    ],
)
def test_changed_request_is_refused(change: Any) -> None:
    """Whatever the signature covers cannot be another: body, method, path, query, header, a header twice."""
    request = signed(headers={"Content-Type": "application/json"})
    assert verified(request) is APP
    assert refusal(change(request)).startswith(MISMATCH)


def test_header_that_is_not_signed_may_change() -> None:
    """Proxies may add and change what is theirs."""
    request = added(signed(), "x-forwarded-for", "192.0.2.1")
    assert verified(changed(request, user_agent="another")) is APP


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"content_type": None}, "the header 'content-type' is signed, but did not arrive"),
        ({"host": None}, "the header 'host' is signed, but did not arrive"),
        ({"x_amz_target": "x"}, "the header x-amz-target must be among the signed headers"),
        ({"x_amz_date": None}, "must have one header x-amz-date like 20300131T235959Z, got none"),
        ({"x_amz_date": "2030-06-15T12:00:00Z"}, "must have one header x-amz-date"),
        ({"x_amz_date": "\u0662\u0660\u0663\u0660\u0660\u0666\u0661\u0665T120000Z"}, "must have one header x-amz-date"),
        ({"x_amz_date": "20300615T256199Z"}, "x-amz-date is no time"),
        ({"x_amz_date": "20300616T000000Z"}, "they must be of one day"),
        ({"authorization": None}, "the request is not signed: sign it by AWS Signature Version 4"),
    ],
)
def test_wrong_header_is_named(header: dict[str, str | None], message: str) -> None:
    """The message says which header it is and what it must be."""
    assert message in refusal(changed(signed(headers={"Content-Type": "application/json"}), **header))


@pytest.mark.parametrize("header", ["authorization", "x-amz-date"])
def test_header_that_is_there_twice_is_refused(header: str) -> None:
    """There is no question of which of the two holds."""
    request = signed()
    assert "one" in refusal(added(request, header, request.headers.get_all(header)[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "of another kind than AWS4-HMAC-SHA256"),
        (("AWS4-HMAC-SHA256 ", "Basic "), "of another kind than AWS4-HMAC-SHA256"),
        (("/aws4_request", ""), "the credential's scope must be"),
        (("/rds-data/", "/"), "the Authorization header must be"),
        (("SignedHeaders=host;", "SignedHeaders="), "the header host must be among the signed headers"),
        (("SignedHeaders=host;x-amz-date", "SignedHeaders="), "the Authorization header must be"),
        (("Signature=", "Signature=A"), "the Authorization header must be"),
        (("/20300615/", "/20300614/"), "they must be of one day"),
        (("/20300615/", "/2030061/"), "the Authorization header must be"),
        (("/eu-west-1/", "/eu-west-2/"), MISMATCH),
        (("=app/", "=/"), "the Authorization header must be"),
        (("=app/", "=app/../"), MISMATCH),
    ],
)
def test_malformed_authorization_is_told_in_its_own_words(change: tuple[str, str], message: str) -> None:
    """Each part of the header that is wrong gets one clear sentence."""
    request = signed()
    (authorization,) = request.headers.get_all("authorization")
    assert change[0] in authorization
    assert message in refusal(changed(request, authorization=authorization.replace(*change)))


def test_another_service_is_refused() -> None:
    """A signature that was made for another service is no request to this one, and the message says which."""
    assert "signed for the service 's3': it must be rds-data" in refusal(signed(service="s3"))


@pytest.mark.parametrize("seconds", [-300, -299, 0, 299, 300])
def test_clocks_may_differ_by_five_minutes(seconds: float) -> None:
    """In both directions, the last second included."""
    assert verified(signed(), seconds_later=seconds) is APP


@pytest.mark.parametrize("seconds", [-86_400, -301, 301, 86_400])
def test_expired_signature_is_refused(seconds: float) -> None:
    """Too old or from too far ahead: both times are told, so that a clock can be set."""
    message = refusal(signed(), seconds_later=seconds)
    assert "signed at 20300615T120000Z" in message
    assert "more than 5 minutes apart" in message
    assert (NOW + timedelta(seconds=seconds)).strftime("%Y%m%dT%H%M%SZ") in message


def test_signature_in_the_query_is_refused_clearly() -> None:
    """A presigned URL could be passed on to anybody."""

    class Presigned(SigV4QueryAuth):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, expires=60)

    request = signed(method="GET", body=b"", signer=Presigned)
    assert "X-Amz-Signature=" in request.query
    assert "signed in its query (a presigned URL)" in refusal(request)


def test_unsigned_body_is_refused() -> None:
    """UNSIGNED-PAYLOAD would let anybody on the way exchange the statement."""
    request = signed(context={"payload_signing_enabled": False})
    assert "UNSIGNED-PAYLOAD" in refusal(request)


def test_body_signed_in_chunks_is_refused() -> None:
    """Only a body that is signed whole is taken."""
    request = signed(headers={"X-Amz-Content-SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"})
    assert "signed in chunks" in refusal(request)


def test_declared_hash_must_be_the_bodys() -> None:
    """As the SDKs for JavaScript and S3 send it; a wrong one is told as what it is."""
    request = signed(signer=S3SigV4Auth)
    assert request.headers.get_all("x-amz-content-sha256")
    assert verified(request) is APP
    assert "its SHA-256 is not that of x-amz-content-sha256" in refusal(request._replace(body=b"{}"))


def test_session_token_alone_is_no_reason() -> None:
    """A token that is left over in the environment does no harm; with a wrong key the message speaks of it."""
    assert verified(signed(credentials=Credentials(NAME, PASSWORD, "token"))) is APP
    message = refusal(signed(credentials=Credentials("ASIAEXAMPLE", "of-aws", "token")))
    assert "A session token came with it: AWS's own credentials are not known here" in message


def test_transfer_in_chunks_is_verified_by_the_whole_body() -> None:
    """How the body came in does not matter: the server has put it together, and the header is not signed."""
    request = added(signed(headers={"Transfer-Encoding": "chunked"}), "x-seen", "1")
    assert verified(changed(request, transfer_encoding=None)) is APP


def test_user_names_with_a_slash_work() -> None:
    """PostgreSQL's names may have one; the scope is read from its end."""
    caller = Caller("team/app", "main", PASSWORD)
    assert verified(signed(credentials=Credentials("team/app", PASSWORD)), caller) is caller


def test_repr_of_a_caller_shows_no_password() -> None:
    """Callers end up in tracebacks."""
    assert PASSWORD not in repr(verified(signed()))


NAMES = st.text(string.ascii_lowercase + string.digits + "-", min_size=1).map(lambda name: f"h-{name}")
VALUES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]) | st.sampled_from(" \t"), max_size=30)
HEADERS = st.lists(st.tuples(NAMES | st.sampled_from(["h-a", "x-amz-b", "x-amz-c"]), VALUES), max_size=6)
PATHS = st.lists(
    st.sampled_from(["", ".", "..", "Execute"])
    | st.text(st.characters(codec="utf-8", exclude_characters="?#\r\n\t"), max_size=8),
    max_size=4,
)
QUERIES = st.lists(st.tuples(st.text("abcXY-_.~", max_size=4), st.text("01%&=+ é", max_size=4)), max_size=4)


@settings(max_examples=300)
@given(
    method=st.sampled_from(["POST", "GET", "PUT"]),
    path=PATHS,
    query=QUERIES,
    headers=HEADERS,
    body=st.text(max_size=200),
    password=st.text(min_size=1, max_size=40),
    region=st.sampled_from(["eu-west-1", "us-gov-east-1", "x"]),
)
def test_what_botocore_signs_is_verified(
    method: str,
    path: list[str],
    query: list[tuple[str, str]],
    headers: list[tuple[str, str]],
    body: str,
    password: str,
    region: str,
) -> None:
    """Any path, query, headers (repeated, with white space), body and password, and no other password."""
    from urllib.parse import quote, urlencode

    url = "https://pool.example:8443/" + "/".join(map(quote, path))
    if query:
        url += "?" + urlencode(query)
    request = signed(method, url, body.encode(), headers, Credentials(NAME, password), region=region)
    caller = Caller(NAME, "main", password)
    assert verified(request, caller) is caller
    assert refusal(request, Caller(NAME, "main", password + "x")).startswith(MISMATCH)


@settings(max_examples=300)
@given(authorization=st.text(st.characters(codec="latin-1")) | st.from_regex(r"AWS4-HMAC-SHA256 [ -~]{0,80}"))
def test_no_authorization_header_breaks_the_endpoint(authorization: str) -> None:
    """Whatever is in the header, the answer is AccessDeniedException."""
    refusal(changed(signed(), authorization=authorization))


@settings(max_examples=200)
@given(st.data())
def test_one_changed_character_of_the_signature_is_refused(data: st.DataObject) -> None:
    """No digit of the signature goes unread."""
    request = signed()
    (authorization,) = request.headers.get_all("authorization")
    place = data.draw(st.integers(len(authorization) - 64, len(authorization) - 1))
    other = data.draw(st.sampled_from([digit for digit in "0123456789abcdef" if digit != authorization[place]]))
    assert refusal(
        changed(request, authorization=authorization[:place] + other + authorization[place + 1 :])
    ).startswith(MISMATCH)


def test_botocore_is_the_signer_of_these_tests() -> None:
    """A guard of the tests themselves: the signer is not ours."""
    assert SigV4Auth.__module__ == "botocore.auth"
