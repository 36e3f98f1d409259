"""The request to Secrets Manager that the layer signs itself."""

from __future__ import annotations

import datetime
import http.server
import threading

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from emberpool.signed_request import CONTENT_TYPE, Keys, secret_text, signed_headers

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:client"
NOW = 1_800_000_000.0


@pytest.fixture
def on_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("body", [b"{}", b'{"SecretId": "x"}', "é".encode()])
def test_signature_is_the_one_that_botocore_makes(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """AWS accepts it as it accepts boto3's: both sign the same bytes alike."""
    host = "secretsmanager.eu-west-1.amazonaws.com"
    ours = signed_headers(Keys("AK", "SK/+", "tok=="), host, "eu-west-1", body, NOW)
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    headers = {"content-type": CONTENT_TYPE, "x-amz-target": ours["x-amz-target"]}
    request = AWSRequest("POST", f"https://{host}/", headers=headers, data=body)
    botocore.auth.SigV4Auth(Credentials("AK", "SK/+", "tok=="), "secretsmanager", "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]


@pytest.mark.parametrize(("status", "expected"), [(200, "the text"), (400, None), (500, None)])
def test_refusal_is_left_to_boto3(
    on_lambda: None, monkeypatch: pytest.MonkeyPatch, status: int, expected: str | None
) -> None:
    """Only a good answer is taken; boto3 asks again otherwise, and its error says more."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"SecretString": "the text"}')

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{server.server_port}")
        assert secret_text(ARN, "AWSCURRENT", 3) == expected
        thread.join()


@pytest.mark.parametrize("missing", ["AWS_LAMBDA_RUNTIME_API", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_nothing_is_sent_where_credentials_come_from_elsewhere(
    on_lambda: None, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Outside of Lambda, and under SnapStart, the credentials are botocore's to find."""
    monkeypatch.delenv(missing)
    assert secret_text(ARN, "AWSCURRENT", 3) is None
