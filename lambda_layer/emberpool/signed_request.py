"""Secrets Manager's GetSecretValue with the standard library alone: without boto3, a cold start is shorter.

Owns the request and its signature (AWS Signature Version 4), for the ordinary case on Lambda only: credentials in
the environment, an ordinary endpoint, an answer at the first try. Everything else is None: boto3's to do and explain,
which verifies certificates as strictly.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

SERVICE = "secretsmanager"
CONTENT_TYPE = "application/x-amz-json-1.1"
# Outside of Lambda credentials have many sources, and tests replace botocore's way to the network.
RUNTIME_API = "AWS_LAMBDA_RUNTIME_API"
# A file of certificates, instead of the system's; botocore's own variable.
CA_BUNDLE = "AWS_CA_BUNDLE"
# What only botocore knows how to honour.
LEFT_TO_BOTOCORE = (
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "https_proxy",
    "http_proxy",
)
SUFFIXES = {"aws": "amazonaws.com", "aws-us-gov": "amazonaws.com", "aws-cn": "amazonaws.com.cn"}


@dataclass(frozen=True)
class Keys:
    """The function's credentials; the secret ones never appear in the repr."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(repr=False)


def secret_text(secret_arn: str, stage: str, timeout_seconds: float) -> str | None:
    """Return the text of the secret's version at `stage`, None when this is not the ordinary case. Never raises."""
    keys, region, url = _keys(), _region(secret_arn), _endpoint(secret_arn)
    if keys is None or url is None or not region:
        return None
    import http.client  # noqa: PLC0415 (only where a secret is read)

    address = urlsplit(url)
    body = json.dumps({"SecretId": secret_arn, "VersionStage": stage}).encode()
    headers = signed_headers(keys, address.netloc, region, body, time.time())
    connection: http.client.HTTPConnection | None = None
    try:
        if address.scheme == "https":
            connection = http.client.HTTPSConnection(address.netloc, timeout=timeout_seconds, context=_trust())
        else:
            connection = http.client.HTTPConnection(address.netloc, timeout=timeout_seconds)
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read()) if response.status == http.client.OK else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        if connection is not None:
            connection.close()
    text = answer.get("SecretString") if isinstance(answer, dict) else None
    return text if isinstance(text, str) else None


def signed_headers(keys: Keys, host: str, region: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of a POST of `body` to "/" at `now` (seconds since the epoch).

    Source: "Create a signed AWS API request", AWS IAM user guide.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {
        "content-type": CONTENT_TYPE,
        "host": host,
        "x-amz-date": moment,
        "x-amz-security-token": keys.session_token,
        "x-amz-target": f"{SERVICE}.GetSecretValue",
    }
    names = ";".join(headers)  # they stand in order
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{moment[:8]}/{region}/{SERVICE}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**headers, "authorization": authorization}


def _keys(environment: Mapping[str, str] = os.environ) -> Keys | None:
    """Return the credentials as Lambda gives them; None elsewhere, and under SnapStart, where they are fetched."""
    found = [environment.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")]
    if RUNTIME_API not in environment or not all(found):
        return None
    return Keys(*map(str, found))


def _endpoint(secret_arn: str, environment: Mapping[str, str] = os.environ) -> str | None:
    if any(environment.get(name) for name in LEFT_TO_BOTOCORE):
        return None
    given = environment.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or environment.get("AWS_ENDPOINT_URL")
    if given:
        return given if urlsplit(given).path in {"", "/"} else None
    suffix, region = SUFFIXES.get(secret_arn.split(":")[1] if ":" in secret_arn else ""), _region(secret_arn)
    return f"https://{SERVICE}.{region}.{suffix}" if suffix and region else None


def _trust(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """Return whose certificates are trusted, None for the system's choice. Raises OSError for a bad file."""
    bundle = environment.get(CA_BUNDLE)
    if not bundle:
        return None
    import ssl  # noqa: PLC0415 (as http.client: only where a secret is read)

    return ssl.create_default_context(cafile=bundle)


def _region(secret_arn: str) -> str:
    parts = secret_arn.split(":")
    return parts[3] if len(parts) > 4 else ""  # noqa: PLR2004 (an ARN)
